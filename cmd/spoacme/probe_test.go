package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store/file"
)

// A probe is answered while its client listens, whatever happens to orders meanwhile, and not a moment longer.
func TestProbe(t *testing.T) {
	st, err := file.Open(t.TempDir(), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	log := slog.New(slog.DiscardHandler)
	table := new(spoa.Table)
	tk := newTokens(st, table, log, func(context.Context) bool { return true }, func() bool { return true })
	socket := filepath.Join(t.TempDir(), "control")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := new(errgroup.Group)
	g.Go(func() error { return (&control{tokens: tk, log: log}).Serve(ctx, ln) })
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	p, end, err := newClient(socket).publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tk.apply(t.Context(), nil); err != nil { // an order came or went
		t.Fatal(err)
	}
	if got, ok := table.Lookup(p.Token); !ok || got != p.KeyAuth {
		t.Errorf("%q, %v", got, ok)
	}
	end()
	for range 200 {
		if err = gone(table, p.Token); err == nil {
			break
		}
		select {
		case <-t.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func gone(table *spoa.Table, token string) error {
	if _, ok := table.Lookup(token); ok {
		return errors.New("the probe is still answered")
	}
	return nil
}

// Checks can't fill the table.
func TestProbesAreFew(t *testing.T) {
	tk := newTokens(nil, new(spoa.Table), slog.New(slog.DiscardHandler), nil, nil)
	var last func()
	for i := range maxProbes {
		withdraw, err := tk.publishProbe(probe{fmt.Sprint("t", i), fmt.Sprint("t", i, ".x")})
		if err != nil {
			t.Fatal(err)
		}
		last = withdraw
	}
	if _, err := tk.publishProbe(probe{"one", "one.x"}); err == nil {
		t.Error("one more was taken")
	}
	last()
	if _, err := tk.publishProbe(probe{"one", "one.x"}); err != nil {
		t.Error(err)
	}
}
