package spoa

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tokenAfter is a store that has every token, once release is closed.
func tokenAfter(release chan struct{}) func(context.Context, string) (string, bool) {
	return func(ctx context.Context, token string) (string, bool) {
		select {
		case <-release:
			return token + ".thumb", true
		case <-ctx.Done():
			return "", false
		}
	}
}

// many looks n tokens up at once and returns how many were found.
func many(t *testing.T, a *Agent, n int, name func(i int) string) int64 {
	t.Helper()
	var found atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, ok := a.lookup(t.Context(), name(i)); ok {
				found.Add(1)
			}
		})
	}
	wg.Wait()
	return found.Load()
}

func TestMissIsAskedOnceForATokenAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		a := New(Config{Table: table(t), Miss: tokenAfter(release)})
		time.AfterFunc(100*time.Millisecond, func() { close(release) })
		if got := many(t, a, 100, func(int) string { return "same" }); got != 100 {
			t.Errorf("%d of 100 found it", got)
		}
		if n := a.Stats().StoreReads; n != 1 {
			t.Errorf("%d reads", n)
		}
	})
}

func TestMissIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		a := New(Config{Table: table(t), MissLimit: 5, Miss: func(ctx context.Context, _ string) (string, bool) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-ctx.Done()
			return "", false
		}})
		start := time.Now()
		if got := many(t, a, 200, func(i int) string { return fmt.Sprint(i) }); got != 0 {
			t.Errorf("%d found", got)
		}
		if d := time.Since(start); d != 800*time.Millisecond {
			t.Errorf("took %v", d)
		}
		synctest.Wait()
		if s := a.Stats(); s.StoreReads != 5 || most.Load() != 5 || now.Load() != 0 {
			t.Errorf("%d reads, %d at once, %d under way", s.StoreReads, most.Load(), now.Load())
		}
		if n := a.misses.skipped.Load(); n != 195 {
			t.Errorf("%d skipped", n)
		}
	})
}

func TestMissIsRememberedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := table(t)
		a := New(Config{Table: tab, Miss: func(context.Context, string) (string, bool) { return "", false }})
		reads := func(want uint64) {
			t.Helper()
			a.lookup(t.Context(), "gone")
			if n := a.Stats().StoreReads; n != want {
				t.Errorf("%d reads, want %d", n, want)
			}
		}
		reads(1)
		reads(1)
		<-time.After(999 * time.Millisecond)
		reads(1)
		<-time.After(2 * time.Millisecond)
		reads(2)
		if err := tab.Publish("two", 2, map[string]string{"gone": "gone.thumb"}); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.lookup(t.Context(), "gone"); !ok {
			t.Error("a published token is still remembered as absent")
		}
	})
}

func TestMissMemoryIsBounded(t *testing.T) {
	a := New(Config{Table: table(t), Miss: func(context.Context, string) (string, bool) { return "", false }})
	for i := range 3 * missMemory {
		a.lookup(t.Context(), fmt.Sprint(i))
	}
	if n := len(a.misses.absent); n > missMemory {
		t.Errorf("%d tokens are remembered", n)
	}
}

// What the store says is no more trusted than what is published.
func TestMissAnswersAreChecked(t *testing.T) {
	for _, keyAuth := range []string{"", "x", "other.thumb", "tok.\r\nX: y"} {
		a := New(Config{Table: table(t), Miss: func(context.Context, string) (string, bool) { return keyAuth, true }})
		if got, ok := a.lookup(t.Context(), "tok"); ok {
			t.Errorf("%q was taken", got)
		}
	}
}

func TestMissPanicIsContained(t *testing.T) {
	var log journal
	a := New(Config{Table: table(t), Logger: log.logger(), Miss: func(context.Context, string) (string, bool) { panic("store") }})
	h := dial(t, local(t, a))
	if err := h.hello("engine"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ask(1, challengePrefix+"tok"); err != nil || got != "miss=unknown" {
		t.Errorf("%q, %v", got, err)
	}
	if n := a.Stats().Panics; n != 1 || log.String() == "" {
		t.Errorf("%d panics, log %q", n, log.String())
	}
}

// A token that is published while the store is being read is answered.
func TestPublishedDuringMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := table(t)
		a := New(Config{Table: tab, Miss: func(ctx context.Context, _ string) (string, bool) {
			<-ctx.Done()
			return "", false
		}})
		time.AfterFunc(100*time.Millisecond, func() {
			if err := tab.Publish("two", 2, map[string]string{"late": "late.thumb"}); err != nil {
				t.Error(err)
			}
		})
		if got, ok := a.lookup(t.Context(), "late"); !ok || got != "late.thumb" {
			t.Errorf("%q, %v", got, ok)
		}
	})
}
