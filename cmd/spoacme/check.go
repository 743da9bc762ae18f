package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spoacme/spoacme/check"
)

func newCheck() *cobra.Command {
	flags := map[string]*string{}
	var files []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "check [-f haproxy.cfg]",
		Short: "Look whether HAProxy, its files, the sidecar and the CA fit together",
		Long: `Look whether HAProxy, its files, the sidecar and the CA fit together. It changes nothing. Every line says what was
looked at, and what to do where something is wrong:

  ok    as it should be
  note  perhaps as you want it, perhaps not
  FAIL  spoacme does not work, or soon will not, until this is changed

It works before the sidecar runs and beside it, and with HAProxy down it looks at what is left.

HAProxy itself does not tell its frontends. They are read from the files named with -f, in HAProxy's order; without -f from
those that the running HAProxy was started with, or /etc/haproxy/haproxy.cfg. Their setenv lines are compared with those in
force. What only a trial can tell is tried: a challenge of a random token goes through HAProxy's port 80 (--http-frontend, else
as in the files), and with --probe every certificate is asked for in a TLS handshake.

Run it as the user that the sidecar runs as: what that one may read and write is part of the answer.
It ends with 0 when nothing failed, with 1 when something did.`,
		Example: `  spoacme check
  spoacme check -f /etc/haproxy/haproxy.cfg -f /etc/haproxy/conf.d
  sudo -u spoacme spoacme check --socket /run/haproxy/admin.sock --http-frontend 127.0.0.1:80`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), checkWithin)
			defer cancel()
			e := &examiner{files: files, flags: flagValues(flags), env: environment()}
			facts, err := e.examine(ctx)
			if err != nil {
				return err
			}
			found := check.Look(facts)
			if err := showFindings(c.OutOrStdout(), found, asJSON); err != nil {
				return err
			}
			if check.Failed(found) {
				return errSilent
			}
			return nil
		},
	}
	addSettings(c, flags)
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "HAProxy's configuration file, or a folder of them; may be given several times")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// checkWithin bounds the whole check, with a CA that hangs and many handshakes.
const checkWithin = 2 * time.Minute

// verdictOf is the JSON document of a check.
type verdictOf struct {
	OK       bool            `json:"ok"` // nothing failed
	Findings []check.Finding `json:"findings"`
}

func showFindings(w io.Writer, found []check.Finding, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(verdictOf{!check.Failed(found), found})
	}
	var errs []error
	n := map[check.Level]int{}
	for _, f := range found {
		n[f.Level]++
		_, err := fmt.Fprintf(w, "%-4s  %-11s  %s\n", f.Level, f.Topic, f.Message)
		errs = append(errs, err)
	}
	_, err := fmt.Fprintf(w, "%d ok, %d to note, %d failed\n", n[check.OK], n[check.Note], n[check.Fail])
	return errors.Join(append(errs, err)...)
}
