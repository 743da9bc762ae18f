package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

func testLeaseNeeded(s *suite) {
	for _, r := range Records("shop") {
		if key := r.Key(); key.Kind.LeaderOnly() {
			s.refused("lease", nil, nil, store.Put(r))
			s.refused("lease", nil, nil, store.Delete(key))
			s.absent(key)
		} else {
			s.commit(nil, nil, store.Put(r))
		}
	}
	lease := s.lead()
	s.commit(lease, nil)
	s.commit(lease, nil, store.Put(budget("x", 1)), store.Put(demand("n", 1)))
	s.commit(nil, at(budgetKey("x"), s.get(budgetKey("x")).Revision), store.Put(demand("n", 2)))
}

// ended demands that a lease is over and that nothing can be written with it.
func (s *suite) ended(lease store.Lease) {
	s.Helper()
	select {
	case <-lease.Context().Done():
	case <-s.ctx().Done():
		s.Fatal("the lease goes on")
	}
	cause := context.Cause(lease.Context())
	if !errors.Is(cause, store.ErrLeaseEnded) || cause.Error() == store.ErrLeaseEnded.Error() {
		s.Errorf("the lease ended because of %q", cause)
	}
	for _, ops := range [][]store.Op{{store.Put(budget("late", 1))}, {store.Put(demand("late", 1))}, nil} {
		if err := s.refused("", lease, nil, ops...); !errors.Is(err, store.ErrLeaseEnded) {
			s.Errorf("%v, want it to say that the lease ended", err)
		}
	}
	s.absent(budgetKey("late"))
	s.absent(demandKey("late"))
}

func testReleased(s *suite) {
	ctx, cancel := context.WithCancel(s.ctx())
	lease, err := s.Lead(ctx)
	if err != nil {
		s.Fatal(err)
	}
	cancel()
	s.commit(lease, nil, store.Put(budget("x", 1)))
	if lease.Context().Err() != nil {
		s.Error("the lease ended with the context of Lead")
	}
	lease.Release()
	s.ended(lease)
	lease.Release()
	next := s.lead()
	lease.Release()
	s.ended(lease)
	s.commit(next, nil, store.Put(budget("x", 2)))
}

func testLost(s *suite) {
	lease := s.lead()
	s.commit(lease, nil, store.Put(budget("x", 1)))
	s.hooks.EndLease(s.T, s.Store)
	s.ended(lease)
	next := s.lead()
	s.commit(next, nil, store.Put(budget("x", 2)))
	s.ended(lease)
	if next.Context().Err() != nil {
		s.Error("the new lease ended too")
	}
}

// impostor is not a lease of any store.
type impostor struct{ ctx context.Context }

func (i impostor) Context() context.Context { return i.ctx }
func (i impostor) Release()                 {}

func testForeignLease(s *suite) {
	s.lead()
	s.refused("lease", impostor{s.Context()}, nil, store.Put(budget("x", 1)))
	s.absent(budgetKey("x"))
}

func testOneLeader(s *suite) {
	const candidates, terms = 4, 5
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		leading int
	)
	for c := range candidates {
		wg.Go(func() {
			for term := range terms {
				lease, err := s.Lead(s.ctx())
				if err != nil {
					s.Error(err)
					return
				}
				mu.Lock()
				leading++
				if leading != 1 {
					s.Errorf("%d leaders", leading)
				}
				mu.Unlock()
				if err := s.Commit(s.ctx(), lease, nil, []store.Op{store.Put(budget("x", c*10+term))}); err != nil {
					s.Error(err)
				}
				mu.Lock()
				leading--
				mu.Unlock()
				lease.Release()
			}
		})
	}
	wg.Wait()
}

// watcher follows a store and keeps what it was told.
type watcher struct {
	mu    sync.Mutex
	calls int
	all   int
	keys  map[store.Key]int
	stop  func() error
}

// follow starts to follow and waits for the first call.
func (s *suite) follow(during func([]store.Key), kinds ...store.Kind) *watcher {
	s.Helper()
	w := &watcher{keys: map[store.Key]int{}}
	ctx, cancel := context.WithCancel(s.ctx())
	result := make(chan error, 1)
	go func() {
		result <- s.Follow(ctx, func(keys []store.Key) {
			w.mu.Lock()
			w.calls++
			if keys == nil {
				w.all++
			}
			for _, k := range keys {
				w.keys[k]++
			}
			w.mu.Unlock()
			if during != nil {
				during(keys)
			}
		}, kinds...)
	}()
	w.stop = sync.OnceValue(func() error { cancel(); return <-result })
	s.Cleanup(func() { _ = w.stop() })
	s.eventually("the first call", func() bool { return w.seen("") })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == 0 {
		s.Error("the first call names keys")
	}
	return w
}

// seen reports whether w was called for a key since it was last forgotten; "" for any call.
func (w *watcher) seen(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == "" {
		return w.calls > 0
	}
	return w.all > 0 || slices.ContainsFunc(slices.Collect(maps.Keys(w.keys)), func(k store.Key) bool { return k.Name == name })
}

func (w *watcher) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = 0
	clear(w.keys)
}

func testFollow(s *suite) {
	everything := s.follow(nil)
	demands := s.follow(nil, store.KindDemand, store.KindRequest)
	everything.forget()
	demands.forget()
	lease := s.lead()
	s.commit(lease, nil, store.Put(budget("x", 1)), store.Put(demand("n", 1)))
	for _, name := range []string{"x", "n"} {
		s.eventually("follow all: "+name, func() bool { return everything.seen(name) })
	}
	s.eventually("follow demands", func() bool { return demands.seen("n") })
	everything.forget()
	demands.forget()
	s.commit(lease, nil, store.Delete(demandKey("n")))
	s.eventually("follow all: delete", func() bool { return everything.seen("n") })
	s.eventually("follow demands: delete", func() bool { return demands.seen("n") })
	demands.mu.Lock()
	defer demands.mu.Unlock()
	if demands.keys[budgetKey("x")] > 0 {
		s.Error("told of a kind that was not asked for")
	}
}

func testFollowEdits(s *suite) {
	w := s.follow(nil, store.KindDemand)
	for i, data := range [][]byte{[]byte(encoded(s, demand("n", 1))), []byte("{"), []byte(encoded(s, demand("n", 2))), nil} {
		w.forget()
		s.hooks.Edit(s.T, s.Store, demandKey("n"), data)
		s.eventually(fmt.Sprint("edit ", i), func() bool { return w.seen("n") })
	}
}

// testFollowAll commits while followers are slow: each must in the end have read what was written last.
func testFollowAll(s *suite) {
	const writers, each = 4, 25
	var (
		mu   sync.Mutex
		last = map[string]time.Time{}
	)
	w := s.follow(func(keys []store.Key) {
		if keys == nil {
			list, err := s.List(s.ctx(), store.KindDemand)
			if err != nil {
				s.Error(err)
			}
			for _, e := range list.Entries {
				keys = append(keys, e.Key)
			}
		}
		for _, k := range keys {
			e, err := s.Get(s.ctx(), k)
			if err != nil {
				s.Error(err)
				return
			}
			mu.Lock()
			last[k.Name] = e.Record.(*store.Demand).Since
			mu.Unlock()
		}
	}, store.KindDemand)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("n%d-%d", w, i%5)
				if err := s.Commit(s.ctx(), nil, nil, []store.Op{store.Put(demand(name, i))}); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.eventually("the follower knows every last change", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for w := range writers {
			for i := each - 5; i < each; i++ {
				if !last[fmt.Sprintf("n%d-%d", w, i%5)].Equal(demand("", i).Since) {
					return false
				}
			}
		}
		return true
	})
	if err := w.stop(); err != nil {
		s.Error(err)
	}
}

func testFollowEnds(s *suite) {
	w := s.follow(nil)
	if err := w.stop(); err != nil {
		s.Error(err)
	}
	w.forget()
	s.commit(nil, nil, store.Put(demand("n", 1)))
	if w.seen("n") {
		s.Error("called after the end")
	}
}

func testBarrier(s *suite) {
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(s.Context(), 500*time.Millisecond)
		s.Cleanup(cancel)
		return ctx
	}
	if missing, err := s.Barrier(short(), 1); err != nil || len(missing) != 1 || missing[0] == "" {
		s.Errorf("nobody acked: %q, %v", missing, err)
	}
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		if missing, err := s.Barrier(s.ctx(), 5); err != nil || len(missing) != 0 {
			s.Errorf("all acked: %q, %v", missing, err)
		}
	}()
	for _, generation := range []uint64{4, 7, 3} {
		if err := s.Ack(s.ctx(), generation); err != nil {
			s.Error(err)
		}
	}
	<-passed
	if missing, err := s.Barrier(short(), 7); err != nil || len(missing) != 0 {
		s.Errorf("an older ack took the newer one back: %q, %v", missing, err)
	}
	if missing, err := s.Barrier(short(), 8); err != nil || len(missing) != 1 {
		s.Errorf("the next one: %q, %v", missing, err)
	}
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	if missing, err := s.Barrier(ended, 8); err == nil && len(missing) == 0 {
		s.Error("with no time to look, it says that every node has the tokens")
	}
}
