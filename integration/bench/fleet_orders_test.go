package bench

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// BenchmarkOrders measures the store's share of issuing for a fleet: the barrier, and all that a leader writes
// and waits for when 200 certificates are due at once, with an authority that takes no time.
func BenchmarkOrders(b *testing.B) {
	s := &sheet{title: "What the fleet's store costs an order"}
	ca := storetest.NewCA(b, "Bench")
	for _, c := range []struct {
		servers, nodes     int
		fetch              bool
		barrier, allOrders string
	}{{3, 3, true, "", ""}, {1, 50, false, "", ""}, {3, 50, false, "p99 < 150 ms", "< 2 s"}, {3, 50, true, "", ""}} {
		during(b, func(b *scope) {
			f := startFleet(b, c.servers, ca, certificates(b, ca, 1))
			f.checks, f.acksOnly = false, !c.fetch
			f.grow(c.nodes, 0)
			by := fmt.Sprintf("%d nodes, %d servers", c.nodes, c.servers)
			if c.fetch {
				by += ", nodes fetch"
			}
			for range *rounds {
				for range 20 {
					f.barriers(s, "barrier, 1 order", by, "", 1)
					settle(context.Background(), 100*time.Millisecond)
				}
				for range 4 {
					f.barriers(s, "barrier, 50 orders in flight", by, c.barrier, 50)
					settle(context.Background(), 100*time.Millisecond)
				}
				begun := time.Now()
				f.orders(200)
				s.figure("200 orders, 50 in flight, all but the authority", by, "s", c.allOrders).add(time.Since(begun).Seconds())
			}
		})
	}
	s.note("All nodes are stand-ins: a sidecar's store with session, acks, watches and token table, in the process that measures. Where it says so they also follow all else and fetch the certificates, and don't parse them: fifty hosts' work on these processors. A barrier is from the commit of an order's tokens being done until all nodes have said that they have them. Nodes and servers share the processors with the leader.")
	s.print(b)
}

// barriers publishes the tokens of some orders at once and waits for all nodes.
func (f *fleet) barriers(s *sheet, what, by, target string, orders int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range orders {
		c := f.tokens(fmt.Sprint("order", i))
		wg.Go(func() {
			begun := time.Now()
			f.commit(store.Put(c))
			published := time.Now()
			f.barrier(c.Generation)
			mu.Lock()
			defer mu.Unlock()
			publication := s.figure(what+": published", by, "ms", "")
			publication.samples = append(publication.samples, ms(published.Sub(begun)))
			waited := s.figure(what, by, "ms", target)
			waited.samples = append(waited.samples, ms(time.Since(published)))
		})
	}
	wg.Wait()
}

// inFlight is how many orders an issuer has open at most.
const inFlight = 50

// orders does with the store what the issuer does for so many certificates.
func (f *fleet) orders(count int) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, inFlight)
	for i := range count {
		name := fmt.Sprintf("o%03d", i)
		issued := f.ca.Certificate(name, storetest.Leaf{Domains: []string{name + ".example.com"}})
		tokens := f.tokens(name)
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f.order(issued, tokens)
		})
	}
	wg.Wait()
}

// order is one of them: attempt and intent, the fence before newOrder, its URL, the tokens, the barrier, the fence and the mark
// before finalize, the certificate.
func (f *fleet) order(issued *store.Certificate, tokens *store.Challenges) {
	now := time.Now().UTC()
	o := store.Order{Name: issued.Name, CA: issued.CA, Account: "account", Spec: store.Spec{Domains: issued.Domains}, Private: issued.Private, Started: now}
	attempt := &store.Attempt{Name: issued.Name, CA: issued.CA, Failures: 1, Tried: now, Next: now}
	stage := func(change func()) store.Op {
		change()
		copied := o
		return store.Put(&copied)
	}
	f.commit(store.Put(attempt), stage(func() {}))
	f.commit()
	f.commit(stage(func() { o.URL = "https://ca.example/order/" + issued.Name }))
	f.commit(store.Put(tokens))
	f.barrier(tokens.Generation)
	f.commit()
	f.commit(stage(func() { o.Finalized = true }))
	f.commit(store.Put(issued), store.Delete(o.Key()), store.Delete(attempt.Key()), store.Delete(tokens.Key()))
}

// tokens are the next order's.
func (f *fleet) tokens(name string) *store.Challenges {
	f.generation++
	return &store.Challenges{Name: name, Generation: f.generation, Tokens: []string{fmt.Sprintf("token-of-%s-%032d", name, f.generation)}, Thumbprint: thumbprint}
}

const thumbprint = "0123456789012345678901234567890123456789012"

func (f *fleet) commit(ops ...store.Op) {
	if err := f.leader.Commit(context.Background(), f.lease, nil, ops); err != nil {
		f.b.Error(err)
	}
}

func (f *fleet) barrier(generation uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if missing, err := f.leader.Barrier(ctx, generation); err != nil || len(missing) > 0 {
		f.b.Error(missing, err)
	}
}
