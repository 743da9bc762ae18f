package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
)

// asking is what issue, renew and remove share: send a request, show its progress, end as it ends.
type asking struct {
	control string
	noWait  bool
	json    bool
	timeout time.Duration
}

func (a *asking) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&a.control, "control", controlDefault(), "unix socket of the sidecar")
	f.BoolVar(&a.noWait, "no-wait", false, "return when the request is stored")
	f.DurationVar(&a.timeout, "timeout", 2*time.Minute, "how long to wait")
	f.BoolVar(&a.json, "json", false, "print the result as JSON")
}

func newIssue() *cobra.Command {
	var a asking
	var key, profile, ca string
	c := &cobra.Command{
		Use:   "issue NAME DOMAIN...",
		Short: "Obtain a certificate and add it to the running HAProxy, with no reload",
		Long: `Obtain a certificate named NAME for the domains, and add it to the running HAProxy with no reload. It is
kept in the store, and renewed from then on. Certificates that are there for good are better named in
haproxy.cfg (SPOACME_CERTS, SPOACME_CERT_NAME).`,
		Example: "  spoacme issue shop shop.example.com www.shop.example.com",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			words := args[1:]
			for k, v := range map[string]string{"key": key, "profile": profile, "ca": ca} {
				if v != "" {
					words = append(words, k+"="+v)
				}
			}
			if err := settings.CertificateName(args[0]); err != nil {
				return usageError("%v", err)
			}
			spec, err := settings.ParseSpec(strings.Join(words, ","))
			if err != nil {
				return usageError("%v", err)
			}
			return a.ask(c.Context(), c.OutOrStdout(), request{Op: store.RequestIssue, Certificate: args[0], Spec: spec})
		},
	}
	a.flags(c)
	c.Flags().StringVar(&key, "key", "", "key type: ec256 (default), ec384, rsa2048, rsa3072, rsa4096")
	c.Flags().StringVar(&profile, "profile", "", "ACME profile, if the CA has several")
	c.Flags().StringVar(&ca, "ca", "", "a CA other than the fleet's: a directory URL or a name such as letsencrypt-staging")
	return c
}

func newRenew() *cobra.Command {
	var a asking
	c := &cobra.Command{
		Use:   "renew NAME",
		Short: "Renew a certificate now",
		Long:  "Renew the certificate NAME now, although it is not due. The one that is served stays until the new one is verified.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c.Context(), c.OutOrStdout(), request{Op: store.RequestRenew, Certificate: args[0]})
		},
	}
	a.flags(c)
	return c
}

func newRemove() *cobra.Command {
	var a asking
	var force bool
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a certificate out of HAProxy, its folder and the store",
		Long: `Take the certificate NAME out of the running HAProxy, its folder and the store. One that haproxy.cfg asks for
must be taken out of SPOACME_CERTS first. This is the only command that deletes a certificate.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c.Context(), c.OutOrStdout(), request{Op: store.RequestRemove, Certificate: args[0], Force: force})
		},
	}
	a.flags(c)
	c.Flags().BoolVar(&force, "force", false, "also when HAProxy may not start without it")
	return c
}

const pollEvery = 100 * time.Millisecond

// ask sends the request and prints each step once, until it is done.
func (a *asking) ask(ctx context.Context, out io.Writer, q request) error {
	cl := newClient(a.control)
	var t ticket
	if err := cl.call(ctx, "/requests", q, &t); err != nil {
		return err
	}
	if a.noWait {
		return a.finish(out, progress{Step: "asked"}, q)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var last progress
	for {
		var p progress
		if err := cl.call(ctx, "/requests/"+t.ID, nil, &p); err != nil {
			if ctx.Err() == nil {
				return err
			}
			return fmt.Errorf("%s %s: not done after %s (%s): it goes on; see 'spoacme status'", q.Op, q.Certificate, a.timeout, last.Step)
		}
		if p.Step != last.Step && !p.Done && !a.json {
			fmt.Fprintf(out, "%s: %s\n", q.Certificate, p.Step)
		}
		if last = p; p.Done {
			return a.finish(out, p, q)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

func (a *asking) finish(out io.Writer, p progress, q request) error {
	if a.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(p); err != nil {
			return err
		}
	}
	switch {
	case p.Error != "" && a.json:
		return errSilent
	case p.Error != "":
		return fmt.Errorf("%s %s: %s", q.Op, q.Certificate, p.Error)
	case a.json:
		return nil
	}
	line := q.Certificate + ": " + p.Step
	if v := p.Result; v != nil && v.Stored != nil && p.Done {
		line += fmt.Sprintf(", serial %s, issued by %s, expires %s", v.Stored.Serial, v.Stored.Issuer, v.Stored.NotAfter.Local().Format(time.DateTime))
	}
	fmt.Fprintln(out, line)
	return nil
}
