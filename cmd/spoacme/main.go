// Command spoacme is the sidecar that runs beside every HAProxy: it answers ACME challenges through
// HAProxy's SPOE, obtains and renews certificates, and swaps them into the running HAProxy.
//
// There is one file per subcommand; runner.go finds the settings, sidecar.go wires the packages together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks errors in the command's words.
var errUsage = errors.New("usage")

// errSilent ends with exitFailed after everything was already said.
var errSilent = errors.New("failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	case errors.Is(err, errUsage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(stderr, "spoacme: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "spoacme: %v\n", err)
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "spoacme",
		Short: "TLS certificates for a running HAProxy: obtained, shared and swapped in with no reload",
		Long: `spoacme runs beside HAProxy. It answers ACME http-01 challenges through HAProxy's SPOE, obtains and
renews certificates, and swaps them into the running HAProxy over its stats socket.

It is configured in haproxy.cfg, by setenv lines of the global section:

  setenv SPOACME_EMAIL     ops@example.com
  setenv SPOACME_CERTS     shop
  setenv SPOACME_CERT_shop shop.example.com,www.shop.example.com

"spoacme check" says what is missing, "spoacme run --help" lists every setting.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError("%v; see '%s --help'", err, c.CommandPath())
	})
	root.AddCommand(newRun(), newCheck(), newIssue(), newRenew(), newRemove(), newStatus(), newKeygen(), newForget(), newVersion())
	for _, c := range root.Commands() {
		c.Args = usageArgs(c.Args)
	}
	return root
}

// usageArgs makes the errors of an argument check usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(c, args); err != nil {
			return usageError("%v; see '%s --help'", err, c.CommandPath())
		}
		return nil
	}
}

type usage struct{ msg string }

func (u usage) Error() string        { return u.msg }
func (u usage) Is(target error) bool { return target == errUsage }

func usageError(format string, args ...any) error { return usage{fmt.Sprintf(format, args...)} }
