package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store"
)

// ackedStore notes what is acknowledged.
type ackedStore struct {
	store.Store
	last atomic.Uint64
}

func (a *ackedStore) Ack(_ context.Context, generation uint64) error {
	a.last.Store(generation)
	return nil
}

// HAProxy is asked again whether it reaches the agent while tokens keep coming: its word is taken for a second, not for as long as
// somebody goes on asking.
func TestReachIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		up.Store(true)
		st := new(ackedStore)
		tk := newTokens(st, new(spoa.Table), slog.New(slog.DiscardHandler), func(context.Context) bool { return up.Load() }, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tk.acknowledge(ctx) }()
		var generation uint64
		come := func(n int) {
			for range n {
				generation++
				select {
				case <-tk.applied:
				default:
				}
				tk.applied <- generation
				time.Sleep(reachFresh / 3)
			}
		}
		come(10)
		if got := st.last.Load(); got != generation {
			t.Errorf("acknowledged %d of %d", got, generation)
		}
		up.Store(false)
		come(4) // the last word has grown old by then
		before := st.last.Load()
		come(10)
		if got := st.last.Load(); got != before {
			t.Errorf("acknowledged %d, after %d, while HAProxy does not reach the agent", got, before)
		}
		up.Store(true)
		time.Sleep(2 * reachEvery)
		if got := st.last.Load(); got != generation {
			t.Errorf("acknowledged %d of %d when HAProxy reaches the agent again", got, generation)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
