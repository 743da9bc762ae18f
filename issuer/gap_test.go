package issuer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// kept reports whether the copy has a record.
func (b *bench) kept(copy *storetest.Memory, kind store.Kind, name string) bool {
	b.t.Helper()
	_, err := copy.Get(b.t.Context(), store.Key{Kind: kind, Name: name})
	if err != nil && !errors.Is(err, store.ErrAbsent) {
		b.t.Fatal(err)
	}
	return err == nil
}

// A snapshot is restored that has the account and not what was issued by hand since: no copy gives it up, and it comes back.
func TestOlderThanCopy(t *testing.T) {
	for _, running := range []bool{true, false} {
		bubble(t, fmt.Sprint("under a leader: ", running), func(t *testing.T, b *bench) {
			copy, stop := b.keepCopy()
			defer stop()
			b.demand("shop=shop.example.com")
			b.start()
			b.ask(store.RequestIssue, "hand", spec("hand.example.com"))
			older := b.store.Snapshot()
			b.settle(day)
			b.ask(store.RequestIssue, "late", spec("late.example.com"))
			late := b.stored("late")
			if !running {
				b.stop()
			}
			older()
			if running {
				b.store.EndLease(errors.New("the lock is another one"))
			}
			b.settle(500 * time.Millisecond)
			if !b.kept(copy, store.KindWanted, "late") || !b.kept(copy, store.KindIssued, "late") {
				t.Error("the copy has given it up")
			}
			if !running {
				b.start()
			}
			b.settle(5 * time.Second)
			if c := b.stored("late"); c.Fingerprint != late.Fingerprint || c.CA != b.ca.directory() || !read[*store.Wanted](b, store.KindWanted, "late").IssuedByHand {
				t.Errorf("back is %s of %q", c.Serial, c.CA)
			}
			b.settle(100 * day)
			if n := b.ca.issued(); n["late.example.com"] != 2 || n["hand.example.com"] != 2 {
				t.Errorf("issued %v: one and its renewal are wanted", n)
			}
			b.ask(store.RequestRemove, "late", store.Spec{})
			b.stop()
			b.start()
			b.settle(2 * day)
			if b.count(store.KindIssued) != 2 || b.kept(copy, store.KindWanted, "late") || b.kept(copy, store.KindIssued, "late") {
				t.Error("it can't be removed any more")
			}
		})
	}
}

// The order that was open when the store went back to before it is gone on with.
func TestOlderThanOrder(t *testing.T) {
	bubble(t, "finalized", func(t *testing.T, b *bench) {
		_, stop := b.keepCopy()
		defer stop()
		b.start()
		b.ask(store.RequestIssue, "hand", spec("hand.example.com"))
		older := b.store.Snapshot()
		went := false
		b.ca.after = func(r *request) {
			if r.op == "finalize" && !went {
				went = true
				time.Sleep(time.Second) // the copy is made meanwhile
				older()
				b.store.EndLease(errors.New("the lock is another one"))
			}
		}
		b.put(&store.Request{ID: "late", Op: store.RequestIssue, Certificate: "late", Spec: spec("late.example.com"), Asked: time.Now()})
		b.settle(time.Minute)
		b.demand("late=late.example.com")
		b.settle(time.Minute)
		if !went || b.ca.issued()["late.example.com"] != 1 || b.stored("late") == nil {
			t.Errorf("issued %v", b.ca.issued())
		}
		b.clean()
	})
}

// What a copy has and the store has not.
func TestGap(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	order := func(url string, started time.Time) *store.Order {
		return &store.Order{
			Name: "shop", CA: "https://ca.example/d", Account: "a", Spec: spec("shop.example.com"), URL: url, Started: started, Private: store.NewSecret([]byte("key")),
		}
	}
	placed := func(d time.Duration) *store.Order { return order("https://ca.example/o/1", ago(d)) }
	certificate := func(issued, left time.Duration) *store.Certificate {
		c := storetest.NewCA(t, "CA").Certificate("shop", storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: ago(issued), NotAfter: now.Add(left)})
		c.IssuedAt = ago(issued)
		return c
	}
	removal := func(d time.Duration) *store.Request {
		return &store.Request{ID: "r", Op: store.RequestRemove, Certificate: "shop", Asked: ago(d), Done: ago(d)}
	}
	tried := func(d time.Duration) *store.Attempt {
		return &store.Attempt{Name: "shop", Tried: ago(d), Next: ago(d), Error: "it failed", Failures: 1}
	}
	byHand := &store.Wanted{Name: "shop", Spec: spec("shop.example.com"), Generation: 1, IssuedByHand: true}
	asked := &store.Wanted{Name: "shop", Spec: spec("shop.example.com"), Generation: 1, Sources: []string{"one"}}
	account := &store.Account{ID: "a", CA: "https://ca.example/d", Private: store.NewSecret([]byte("key"))}
	recent, old := mark(ago(day)), mark(ago(40*day))
	type records []store.Record
	for _, c := range []struct {
		name  string
		had   store.Record // in the copy
		copy  records      // what else is in the copy
		store records
		over  bool
	}{
		{"issued by hand", byHand, records{recent}, nil, false},
		{"and removed", byHand, records{recent}, records{removal(time.Hour)}, true},
		{"and removed, and issued again", byHand, records{recent, certificate(time.Hour, day)}, records{removal(2 * time.Hour)}, false},
		{"and removed, and ordered again", byHand, records{recent, placed(time.Hour)}, records{removal(2 * time.Hour)}, false},
		{"by hand, and the copy saw nothing for long", byHand, records{old}, nil, true},
		{"by hand, and the account is lost too", byHand, records{old, account}, nil, false},
		{"by hand, in a copy of an earlier version", byHand, nil, nil, true},
		{"asked for by a node", asked, records{recent}, nil, true},
		{"a certificate", certificate(time.Hour, day), records{recent}, nil, false},
		{"removed", certificate(2*time.Hour, day), records{recent}, records{removal(time.Hour)}, true},
		{"removed by a clock that is behind", certificate(time.Hour, day), records{recent}, records{removal(time.Hour + time.Minute)}, true},
		{"expired", certificate(10*day, -time.Hour), records{recent}, nil, true},
		{"an order", placed(time.Hour), records{recent}, nil, false},
		{"that was not placed", order("", ago(time.Hour)), records{recent}, nil, true},
		{"of last week", placed(8 * day), records{recent}, nil, true},
		{"with its certificate", placed(time.Hour), records{recent}, records{certificate(time.Hour-time.Second, day)}, true},
		{"with a certificate from before", placed(time.Hour), records{recent}, records{certificate(30*day, day)}, false},
		{"that failed", placed(time.Hour), records{recent}, records{tried(time.Hour)}, true},
		{"after one that failed", placed(time.Hour), records{recent}, records{tried(2 * time.Hour)}, false},
		{"of what was removed", placed(time.Hour), records{recent}, records{removal(time.Minute)}, true},
		{"an account", account, records{old}, nil, false},
	} {
		from, copy := storetest.NewMemory(), storetest.NewMemory()
		for s, all := range map[*storetest.Memory]records{from: c.store, copy: append(c.copy, c.had)} {
			for _, r := range all {
				data, err := store.Encode(r, store.Plain{})
				if err != nil {
					t.Fatal(err)
				}
				s.Edit(r.Key(), data)
			}
		}
		g := newGap(from, copy)
		g.now = now
		if over, err := g.over(t.Context(), c.had); over != c.over || err != nil {
			t.Errorf("%s: over %t, %v", c.name, over, err)
		}
	}
}
