package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/status"
)

func newStatus() *cobra.Command {
	var socket string
	var asJSON, watch bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Show every certificate: stored, served, and what happens next",
		Long: `Show every certificate: what is stored, what HAProxy serves, when it is renewed, what is wrong and what to do.
It ends with 1 when something is wrong, so that it can stand in a script.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl := newClient(socket)
			for {
				var v status.View
				if err := cl.call(c.Context(), "/status", nil, &v); err != nil {
					return err
				}
				if watch && !asJSON {
					fmt.Fprint(c.OutOrStdout(), "\033[H\033[2J")
				}
				if err := show(c.OutOrStdout(), v, asJSON); err != nil {
					return err
				}
				if !watch {
					return verdict(v)
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(every):
				}
			}
		},
	}
	c.Flags().StringVar(&socket, "control", controlDefault(), "unix socket of the sidecar")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch one document after the other")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	c.Flags().DurationVar(&every, "every", time.Second, "pause between two looks of --watch")
	return c
}

func show(w io.Writer, v status.View, asJSON bool) error {
	if !asJSON {
		return status.Table(w, v)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// verdict is an error when something needs a person.
func verdict(v status.View) error {
	if !v.Ready() {
		return errSilent
	}
	for _, c := range v.Certificates {
		switch c.State {
		case status.Expired, status.Missing, status.Drift, status.Failing:
			return errSilent
		}
	}
	return nil
}

// controlDefault is the control socket of the environment, or the usual one.
func controlDefault() string {
	s, _ := settings.Load(settings.Source{Name: settings.FromEnvironment, Values: environment()})
	return s.Control
}
