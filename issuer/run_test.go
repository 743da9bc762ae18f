package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// Other certificates go on while one is limited; a limit on the account stops them all until it ends.
func TestRateLimits(t *testing.T) {
	limit := func(detail string, names ...string) func(r *request) *http.Response {
		return func(r *request) *http.Response {
			if r.op != "order" {
				return nil
			}
			for _, n := range names {
				if strings.Contains(fmt.Sprint(r.payload), n) {
					return problem(429, "rateLimited", detail, "Retry-After", "7200")
				}
			}
			return nil
		}
	}
	bubble(t, "of one certificate", func(t *testing.T, b *bench) {
		b.ca.intercept = limit("too many certificates (5) already issued for this exact set of identifiers", "shop")
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.start()
		b.settle(time.Minute)
		if read[*store.Certificate](b, store.KindIssued, "blog") == nil {
			t.Error("the other one was held up")
		}
		if a := read[*store.Attempt](b, store.KindAttempt, "shop"); a == nil || !a.Limited || b.count(store.KindBudget) != 0 {
			t.Errorf("attempt %+v", a)
		}
		before := b.ca.total(requests)
		b.ask(store.RequestRenew, "shop", store.Spec{})
		b.stop()
		b.start()
		b.settle(time.Hour)
		if b.ca.total(requests) != before {
			t.Error("asked again before the CA allowed it")
		}
	})
	bubble(t, "of the account", func(t *testing.T, b *bench) {
		b.ca.intercept = limit("too many new orders (300) from this account in the last 3h0m0s", "shop")
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Minute)
		b.stop()
		before := b.ca.total(requests)
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.rig(func(ca *model) { ca.intercept = nil })
		b.start()
		b.settle(time.Hour + 50*time.Minute)
		if b.ca.total(requests) != before {
			t.Errorf("%d requests before the CA allowed them", b.ca.total(requests)-before)
		}
		b.settle(time.Hour)
		if b.count(store.KindIssued) != 2 {
			t.Error("not issued afterwards")
		}
	})
	bubble(t, "of three certificates in a row", func(t *testing.T, b *bench) {
		b.ca.intercept = limit("too many of something", "example")
		var certs []string
		for i := range 30 {
			certs = append(certs, fmt.Sprintf("c%d=c%d.example.com", i, i))
		}
		b.cfg.MaxOrders = 3
		b.demand(certs...)
		b.start()
		b.settle(time.Hour)
		if n := b.ca.total(requests); n > 12 {
			t.Errorf("%d requests", n)
		}
	})
}

// A CA that says when it is back is left alone until then: by other certificates, after a restart, and when an operator asks.
func TestBusyCA(t *testing.T) {
	bubble(t, "over a restart", func(t *testing.T, b *bench) {
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "order" {
				return busy()
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Minute)
		before := b.ca.total(requests)
		b.stop()
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.rig(func(ca *model) { ca.intercept = nil })
		b.start()
		b.ask(store.RequestRenew, "shop", store.Spec{})
		b.settle(time.Hour + 57*time.Minute)
		if n := b.ca.total(requests) - before; n != 0 {
			t.Errorf("%d requests before the CA allowed them", n)
		}
		b.settle(4 * time.Minute)
		if b.count(store.KindIssued) != 2 {
			t.Error("not issued afterwards")
		}
	})
	bubble(t, "another one goes on", func(t *testing.T, b *bench) {
		second := newModel(t)
		second.host, second.validate = "second.example", b.published
		b.ca.intercept = func(*request) *http.Response { return busy() }
		b.cfg.HTTP = &http.Client{Transport: both{b.ca, second}}
		b.cfg.CAs = append(b.cfg.CAs, CA{Directory: second.directory()})
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(10 * time.Second)
		if c := b.stored("shop"); c.CA != second.directory() {
			t.Errorf("issued by %s", c.CA)
		}
	})
}

// Limits of our own stay below the CA's.
func TestOwnLimits(t *testing.T) {
	bubble(t, "orders", func(t *testing.T, b *bench) {
		b.cfg.CAs[0].Orders = 10
		var certs []string
		for i := range 25 {
			certs = append(certs, fmt.Sprintf("c%02d=c%02d.example.com", i, i))
		}
		b.demand(certs...)
		b.start()
		for i, want := range []int{10, 20, 25} {
			b.settle(time.Minute)
			if n := b.ca.total(orders); n != want {
				t.Errorf("%d orders after %d windows, want %d", n, i, want)
			}
			b.settle(orderWindow)
		}
	})
	bubble(t, "the same names", func(t *testing.T, b *bench) {
		b.cfg.CAs[0].Orders = 100
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		for range 6 {
			b.ask(store.RequestRenew, "shop", store.Spec{})
			b.settle(time.Hour)
		}
		if n := b.ca.total(orders); n != 4 {
			t.Errorf("%d orders, want 4", n)
		}
		b.settle(week)
		if n := b.ca.total(orders); n != 5 {
			t.Errorf("%d orders a week later, want 5", n)
		}
	})
}

func TestNextCA(t *testing.T) {
	bubble(t, "the first is down", func(t *testing.T, b *bench) {
		second := newModel(t)
		second.host, second.validate = "second.example", b.published
		b.ca.intercept = func(*request) *http.Response { return answer(503, "") }
		b.cfg.HTTP = &http.Client{Transport: both{b.ca, second}}
		b.cfg.CAs = append(b.cfg.CAs, CA{Directory: second.directory()})
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.start()
		b.settle(10 * time.Second)
		c := read[*store.Certificate](b, store.KindIssued, "shop")
		if c == nil || c.CA != second.directory() || b.count(store.KindIssued) != 2 {
			t.Errorf("issued %+v", c)
		}
		second.mu.Lock()
		second.intercept = b.ca.intercept
		second.mu.Unlock()
		b.demand("shop=shop.example.com", "blog=blog.example.com", "both=both.example.com")
		before := b.ca.total(requests) + second.total(requests)
		b.settle(3 * time.Hour)
		if n := b.ca.total(requests) + second.total(requests) - before; n > 100 {
			t.Errorf("%d requests while both are down", n)
		}
	})
	bubble(t, "an order stays where it is", func(t *testing.T, b *bench) {
		second := newModel(t)
		second.host, second.validate = "second.example", b.published
		b.cfg.HTTP = &http.Client{Transport: both{b.ca, second}}
		b.cfg.CAs = append(b.cfg.CAs, CA{Directory: second.directory()})
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "get" {
				return answer(503, "")
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(30 * time.Second)
		b.rig(func(ca *model) { ca.intercept = nil })
		b.settle(10 * time.Minute)
		if c := read[*store.Certificate](b, store.KindIssued, "shop"); c == nil || c.CA != b.ca.directory() || second.total(requests) != 0 {
			t.Errorf("issued %+v", c)
		}
	})
}

// both routes by host.
type both [2]*model

func (m both) RoundTrip(req *http.Request) (*http.Response, error) {
	for _, ca := range m {
		if ca.host == req.URL.Host {
			return ca.RoundTrip(req)
		}
	}
	return nil, errors.New("no such host")
}

// missing is a store with nodes that take long to acknowledge.
type missing struct {
	*storetest.Memory
	nodes func() []string
}

func (m missing) Barrier(ctx context.Context, _ uint64) ([]string, error) {
	nodes := m.nodes()
	if len(nodes) > 0 {
		<-ctx.Done()
	}
	return nodes, nil
}

func TestBarrier(t *testing.T) {
	bubble(t, "a node does not answer", func(t *testing.T, b *bench) {
		b.join("one", "two")
		b.cfg.Store = missing{b.store, func() []string { return []string{"two"} }}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(4 * time.Second)
		if n := b.count(store.KindChallenges); n != 1 {
			t.Fatalf("%d publications", n)
		}
		b.settle(2 * time.Second)
		if b.count(store.KindIssued) != 1 {
			t.Error("not issued")
		}
		if !strings.Contains(b.log.String(), "node=[two]") {
			t.Error("the node is not named")
		}
	})
	for name, f := range map[string]func(b *bench){
		"nobody answers": func(b *bench) { b.join("one", "two") },
		"the only node":  func(b *bench) {},
	} {
		bubble(t, name, func(t *testing.T, b *bench) {
			f(b)
			var there atomic.Bool
			b.cfg.Store = missing{b.store, func() []string {
				if there.Load() {
					return nil
				}
				return []string{"one", "two"}
			}}
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(3 * time.Hour)
			if a := read[*store.Attempt](b, store.KindAttempt, "shop"); a != nil && a.Error == "" { // a try is under way
				b.settle(10 * time.Second)
			}
			a := read[*store.Attempt](b, store.KindAttempt, "shop")
			if a == nil || !strings.HasPrefix(a.Error, "no HAProxy answers challenges yet") || a.Failures != 1 {
				t.Errorf("attempt %+v", a)
			}
			if b.count(store.KindIssued) != 0 || b.ca.total(orders) != 1 {
				t.Errorf("%d issued, %d orders", b.count(store.KindIssued), b.ca.total(orders))
			}
			there.Store(true)
			b.settle(2 * time.Minute)
			if b.count(store.KindIssued) != 1 || b.ca.total(orders) != 1 {
				t.Errorf("%d issued from %d orders when HAProxy was there", b.count(store.KindIssued), b.ca.total(orders))
			}
			b.clean()
		})
	}
	bubble(t, "the node answers", func(t *testing.T, b *bench) {
		b.store.AckAll = false
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		go func() {
			_ = b.store.Follow(t.Context(), func([]store.Key) {
				l, _ := b.store.List(t.Context(), store.KindChallenges)
				for _, e := range l.Entries {
					_ = b.store.Ack(t.Context(), e.Record.(*store.Challenges).Generation)
				}
			}, store.KindChallenges)
		}()
		b.start()
		b.settle(time.Second)
		if b.count(store.KindIssued) != 2 {
			t.Error("not issued")
		}
		b.stop()
		_ = b.store.Close()
	})
}

func TestEnd(t *testing.T) {
	bubble(t, "the process is asked to end", func(t *testing.T, b *bench) {
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "challenge" {
				return reply(200, map[string]string{"status": "processing"})
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		if b.count(store.KindChallenges) != 1 {
			t.Fatal("no tokens out")
		}
		start := time.Now()
		b.stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %s", took)
		}
		if b.count(store.KindChallenges) != 0 || b.count(store.KindOrder) != 1 {
			t.Error("tokens are left, or the order is not")
		}
		if a := read[*store.Attempt](b, store.KindAttempt, "shop"); a == nil || a.Error != "" {
			t.Errorf("the end counts as a failure: %+v", a)
		}
		b.rig(func(ca *model) { ca.intercept = nil })
		b.start()
		b.settle(5 * time.Second)
		if b.count(store.KindIssued) != 1 || b.ca.total(orders) != 1 {
			t.Errorf("%d issued from %d orders", b.count(store.KindIssued), b.ca.total(orders))
		}
	})
	bubble(t, "the lease ends", func(t *testing.T, b *bench) {
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "get" {
				b.store.Edit(store.Key{Kind: store.KindDemand, Name: "one"}, nil)
				b.store.EndLease(errKilled)
				go func() { _, _ = b.store.Lead(t.Context()) }() // somebody else leads now
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		before := b.ca.total(requests)
		b.settle(time.Hour)
		if b.ca.total(requests) != before {
			t.Errorf("%d requests without a lease", b.ca.total(requests)-before)
		}
	})
	bubble(t, "an endless crash loop", func(t *testing.T, b *bench) {
		b.ca.after = func(r *request) {
			if r.op == "order" {
				b.store.EndLease(errKilled)
			}
		}
		b.demand("shop=shop.example.com")
		for range 40 {
			b.start()
			b.settle(30 * time.Second)
			b.stop()
		}
		if n := b.ca.total(orders); n > 6 {
			t.Errorf("%d orders in 20 minutes of crashing", n)
		}
	})
}

// A node that is idle does nothing.
func TestIdle(t *testing.T) {
	bubble(t, "a day", func(t *testing.T, b *bench) {
		b.store.OnCommit = func(n int, _ []store.Op) storetest.Fault {
			b.commits = n
			return storetest.Fault{}
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		commits, asked := b.commits, b.ca.total(requests)
		b.settle(day)
		if b.ca.total(requests) != asked || b.commits != commits {
			t.Errorf("%d requests, %d commits", b.ca.total(requests)-asked, b.commits-commits)
		}
	})
}
