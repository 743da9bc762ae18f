package main

import "github.com/spf13/cobra"

func newForget() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "forget NODE",
		Short: "Forget a node of the fleet that is gone for good",
		Long: `Forget a node of the fleet that is gone for good: what its haproxy.cfg asked for counts no longer. Certificates that
only it asked for are renewed no more, and stay where they are served. A node that is live is not forgotten.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return newClient(socket).call(c.Context(), "/forget", forgetting{args[0]}, new(struct{}))
		},
	}
	c.Flags().StringVar(&socket, "control", controlDefault(), "unix socket of the sidecar")
	return c
}

// forgetting is the body of POST /forget.
type forgetting struct {
	Node string `json:"node"`
}
