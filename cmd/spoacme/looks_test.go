package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// countedStore counts how often everything of a kind is read, each time for as long as it is told to take.
type countedStore struct {
	store.Store
	lists atomic.Int64
	takes time.Duration
	fail  atomic.Bool
}

func (c *countedStore) List(ctx context.Context, kind store.Kind) (store.Listing, error) {
	c.lists.Add(1)
	select {
	case <-time.After(c.takes):
	case <-ctx.Done():
	}
	if c.fail.Load() || ctx.Err() != nil {
		return store.Listing{}, errors.New("out of reach")
	}
	return c.Store.List(ctx, kind)
}

// published puts an order's token into a store.
func published(t *testing.T, st store.Store, lease store.Lease, order, token string) {
	t.Helper()
	ch := storetest.Records(order)[6].(*store.Challenges)
	ch.Tokens = []string{token}
	if err := st.Commit(t.Context(), lease, nil, []store.Op{store.Put(ch)}); err != nil {
		t.Fatal(err)
	}
}

// Random tokens from the internet cost no read of the store while no order is open, and few when that is not known.
func TestLooksAreFew(t *testing.T) {
	for name, c := range map[string]struct {
		applied, open, fails, lost bool
		most                       int64
	}{
		"nothing was read yet":         {most: 11},
		"no order is open":             {applied: true, most: 0},
		"an order is open":             {applied: true, open: true, most: 11},
		"the last read failed":         {applied: true, fails: true, most: 11},
		"the store tells of no change": {applied: true, lost: true, most: 11},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mem := storetest.NewMemory()
				lease, err := mem.Lead(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				st := &countedStore{Store: mem, takes: 30 * time.Millisecond}
				tk := newTokens(st, new(spoa.Table), slog.New(slog.DiscardHandler), nil, func() bool { return !c.lost })
				if c.open {
					published(t, mem, lease, "shop", "known-known-known-known")
				}
				if c.applied {
					if err := tk.apply(t.Context(), nil); err != nil {
						t.Fatal(err)
					}
				}
				if st.fail.Store(c.fails); c.fails {
					if tk.apply(t.Context(), nil) == nil {
						t.Fatal("it did not fail")
					}
				}
				before := st.lists.Load()
				ask := func(token string) {
					ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
					defer cancel()
					if auth, ok := tk.miss(ctx, token); ok {
						t.Errorf("%s: %s", token, auth)
					}
				}
				var asked sync.WaitGroup
				for i := range 1000 {
					asked.Go(func() { ask(fmt.Sprint("random", i)) })
					time.Sleep(time.Millisecond)
				}
				asked.Wait()
				if n := st.lists.Load() - before; n > c.most || c.most > 0 && n < 2 {
					t.Errorf("1000 unknown tokens in a second cost %d reads, at most %d are needed", n, c.most)
				}
			})
		})
	}
}

// A token that is published while another one is being looked for is found by the next look.
func TestLookFindsWhatIsNew(t *testing.T) {
	const first, second = "first-first-first-first", "second-second-second-second"
	synctest.Test(t, func(t *testing.T) {
		mem := storetest.NewMemory()
		lease, err := mem.Lead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		published(t, mem, lease, "shop", first)
		st := &countedStore{Store: mem, takes: 30 * time.Millisecond}
		tk := newTokens(st, new(spoa.Table), slog.New(slog.DiscardHandler), nil, func() bool { return true })
		go tk.miss(t.Context(), "random")
		synctest.Wait()
		published(t, mem, lease, "mail", second)
		began := time.Now()
		for _, token := range []string{second, first} {
			if auth, ok := tk.miss(t.Context(), token); !ok || !strings.HasPrefix(auth, token+".") {
				t.Errorf("%s: %q, %v", token, auth, ok)
			}
		}
		if took := time.Since(began); took > 3*lookEvery {
			t.Errorf("it took %v", took)
		}

		// A store that does not answer holds nobody longer than he waits.
		st.takes = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
		defer cancel()
		began = time.Now()
		for range 3 {
			tk.miss(ctx, first)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a store that does not answer held it for %v", took)
		}
	})
}
