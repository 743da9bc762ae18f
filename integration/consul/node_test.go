package consul_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/storetest"
)

// node behaves as a sidecar does towards its store: it keeps a token table and a copy of what is issued.
type node struct {
	*consul.Store
	stop func()

	mu     sync.Mutex
	tokens map[string]uint64 // generation by order
	slow   chan struct{}     // while open, the table is not updated
	certs  map[string]string // fingerprint by name
	lists  int               // full reads of what is issued
	told   []store.Key
}

// start runs a node until the test ends.
func (f *fleet) start(cfg consul.Config) *node {
	f.tb.Helper()
	n := &node{tokens: map[string]uint64{}, certs: map[string]string{}}
	s, stop := f.run(cfg)
	n.Store = s
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Follow(ctx, func([]store.Key) { n.readTokens(ctx) }, store.KindChallenges) })
	wg.Go(func() { _ = s.Follow(ctx, func(keys []store.Key) { n.readCerts(ctx, keys) }, store.KindIssued) })
	n.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); stop() })
	f.tb.Cleanup(n.stop)
	return n
}

func (n *node) readTokens(ctx context.Context) {
	n.mu.Lock()
	slow := n.slow
	n.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return
		}
	}
	list, err := n.List(ctx, store.KindChallenges)
	if err != nil {
		return
	}
	n.mu.Lock()
	clear(n.tokens)
	var high uint64
	for _, e := range list.Entries {
		c := e.Record.(*store.Challenges)
		n.tokens[c.Name] = c.Generation
		high = max(high, c.Generation)
	}
	n.mu.Unlock()
	_ = n.Ack(ctx, high)
}

func (n *node) readCerts(ctx context.Context, keys []store.Key) {
	if keys == nil {
		list, err := n.List(ctx, store.KindIssued)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.lists++
		if err == nil {
			for _, e := range list.Entries {
				n.certs[e.Key.Name] = e.Record.(*store.Certificate).Fingerprint
			}
		}
		return
	}
	for _, k := range keys {
		e, err := n.Get(ctx, k)
		n.mu.Lock()
		n.told = append(n.told, k)
		if err == nil {
			n.certs[k.Name] = e.Record.(*store.Certificate).Fingerprint
		}
		n.mu.Unlock()
	}
}

func (n *node) cert(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.certs[name]
}

func (n *node) token(order string) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tokens[order]
}

func (n *node) setSlow(slow chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = slow
}

func (n *node) fullReads() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lists
}

// eventually waits for a condition.
func eventually(tb testing.TB, limit time.Duration, what string, ok func() bool) {
	tb.Helper()
	err := fixture.Await(tb.Context(), limit, func() error {
		if !ok() {
			return fmt.Errorf("%s: not so", what)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// lead takes the lease until the test ends.
func lead(tb testing.TB, s store.Store) store.Lease {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 60*time.Second)
	defer cancel()
	l, err := s.Lead(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.Release)
	return l
}

func commit(tb testing.TB, s store.Store, l store.Lease, ops ...store.Op) {
	tb.Helper()
	if err := s.Commit(tb.Context(), l, nil, ops); err != nil {
		tb.Fatal(err)
	}
}

// certificate is a record that is good enough for a store; n tells versions apart.
func certificate(name string, n int) *store.Certificate {
	c := storetest.Records(name)[1].(*store.Certificate)
	c.Fingerprint = fmt.Sprintf("%040X", n)
	return c
}

func challenges(order string, generation uint64) *store.Challenges {
	c := storetest.Records(order)[6].(*store.Challenges)
	c.Generation = generation
	return c
}

func issuedKey(name string) store.Key { return store.Key{Kind: store.KindIssued, Name: name} }
