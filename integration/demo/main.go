// Command demo shows spoacme at work on this machine: a real HAProxy, a real ACME server, one sidecar. A certificate is
// obtained through HAProxy itself and served without a reload; then one is renewed and another one added while TLS
// clients are at work. Everything lives in a temporary folder, on free ports of 127.0.0.1, and ends with the program.
//
//	demo SPOACME        the program to show; `make demo` builds both
//
// With DEMO_ONCE=1 in the environment it ends after the proof. It ends with 1 when anything was not as promised.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The handler stays until the end: another Ctrl-C must not cut the cleaning up.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "demo: run `make demo`")
		os.Exit(2)
	}
	screen := newScreen(os.Stdout)
	err := show(ctx, screen, os.Args[1], os.Getenv("DEMO_ONCE") != "")
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		screen.text("stopped; nothing is left running")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// show runs the whole demo and cleans up after it.
func show(ctx context.Context, screen *screen, program string, once bool) (err error) {
	w, err := newWorld(program)
	if err != nil {
		return err
	}
	defer func() {
		logs := w.logs()
		w.close()
		switch {
		case err == nil:
		case ctx.Err() != nil: // whatever failed, failed because of this
			err = ctx.Err()
		default:
			fmt.Fprint(os.Stderr, logs)
		}
	}()

	screen.title("spoacme: certificates for a running HAProxy, with no reload")
	if err := w.launch(ctx, screen); err != nil {
		return err
	}
	first, err := firstCertificate(ctx, screen, w)
	if err != nil {
		return err
	}
	if err := underLoad(ctx, screen, w, first); err != nil {
		return err
	}
	if err := w.leave(ctx, screen, once); err != nil || once {
		return err
	}
	<-ctx.Done()
	screen.text("")
	screen.text("stopping; the temporary folder goes too")
	return nil
}
