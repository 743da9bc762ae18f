package issuer

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

var errKilled = errors.New("killed")

// converged demands one certificate, issued once, stored, and nothing left over.
func (b *bench) converged() {
	b.t.Helper()
	c := read[*store.Certificate](b, store.KindIssued, "shop")
	if c == nil {
		b.t.Error("not issued")
		return
	}
	if n := b.ca.issued()["shop.example.com"]; n != 1 {
		b.t.Errorf("%d certificates issued", n)
	}
	if b.ca.total(accounts) != 1 {
		b.t.Errorf("%d accounts", b.ca.total(accounts))
	}
	b.clean()
}

// A process that dies when the n-th request is on its way to the CA, or on its way back, is followed by another one
// that finishes the work.
func TestKilledAtRequest(t *testing.T) {
	for _, way := range []string{"there", "back"} {
		for n, reached := 1, true; reached; n++ {
			bubble(t, fmt.Sprint(way, n), func(t *testing.T, b *bench) {
				reached = false
				kill := func(r *request) {
					if r.n == n {
						reached = true
						b.store.EndLease(errKilled)
					}
				}
				if way == "back" {
					b.ca.after = kill
				} else {
					b.ca.intercept = func(r *request) *http.Response {
						kill(r)
						return nil
					}
				}
				b.demand("shop=shop.example.com,www.example.com")
				b.start()
				b.settle(time.Minute)
				b.stop()
				b.start()
				b.settle(time.Minute)
				b.converged()
			})
		}
	}
}

// The same at the n-th commit: with nothing stored, and with all of it stored.
func TestKilledAtCommit(t *testing.T) {
	for _, outcome := range []storetest.Outcome{storetest.Stored, storetest.Lost} {
		for n, reached := 2, true; reached; n++ {
			bubble(t, fmt.Sprint(outcome, n), func(t *testing.T, b *bench) {
				reached = false
				b.store.OnCommit = func(i int, ops []store.Op) storetest.Fault {
					if i != n {
						return storetest.Fault{}
					}
					reached = true
					if outcome == storetest.Lost {
						b.store.EndLease(errKilled)
						return storetest.Fault{Outcome: outcome}
					}
					go func() { // stored first
						time.Sleep(time.Millisecond)
						b.store.EndLease(errKilled)
					}()
					return storetest.Fault{Outcome: outcome, Stall: time.Second}
				}
				b.demand("shop=shop.example.com,www.example.com")
				b.start()
				b.settle(time.Minute)
				b.stop()
				b.start()
				b.settle(time.Minute)
				b.converged()
			})
		}
	}
}

// Every commit may fail in every way without a second certificate.
func TestFaultyCommits(t *testing.T) {
	for _, outcome := range []storetest.Outcome{storetest.Refused, storetest.Stored, storetest.Lost} {
		for n, reached := 2, true; reached; n++ {
			bubble(t, fmt.Sprint(outcome, n), func(t *testing.T, b *bench) {
				reached = false
				b.store.OnCommit = func(i int, ops []store.Op) storetest.Fault {
					if i != n {
						return storetest.Fault{}
					}
					reached = true
					return storetest.Fault{Outcome: outcome}
				}
				b.demand("shop=shop.example.com,www.example.com")
				b.start()
				b.settle(3 * time.Hour)
				if b.count(store.KindIssued) != 1 {
					t.Error("not issued")
				}
				if n := b.ca.issued()["shop.example.com"]; n != 1 {
					t.Errorf("%d certificates issued", n)
				}
				b.clean()
			})
		}
	}
}

// A CA that has gone for ever holds a certificate up for a day, or for a week when it was asked to issue.
func TestHopeless(t *testing.T) {
	for op, held := range map[string]time.Duration{"challenge": day, "certificate": week} {
		bubble(t, op, func(t *testing.T, b *bench) {
			second := newModel(t)
			second.host, second.validate = "second.example", b.published
			b.cfg.HTTP = &http.Client{Transport: both{b.ca, second}}
			dead := false
			b.ca.intercept = func(r *request) *http.Response {
				if dead = dead || r.op == op; dead {
					return unreachable
				}
				return nil
			}
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(time.Minute)
			b.stop()
			b.cfg.CAs = []CA{{Directory: second.directory()}}
			b.start()
			b.settle(held - 2*time.Hour)
			if second.total(orders) != 0 {
				t.Error("another CA was asked too early")
			}
			b.settle(5 * time.Hour)
			if c := read[*store.Certificate](b, store.KindIssued, "shop"); c == nil || second.total(orders) != 1 {
				t.Error("not issued by the other CA")
			}
			b.clean()
		})
	}
}
