package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// keepCopy keeps a copy until stop.
func (b *bench) keepCopy() (copy *storetest.Memory, stop func()) {
	copy = storetest.NewMemory()
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- KeepCopy(ctx, b.store, copy, slog.New(slog.DiscardHandler)) }()
	b.cfg.Copy = copy
	return copy, func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	}
}

// Everything is deleted under a leader, or while nobody leads: the account and all certificates come back, nothing is ordered.
func TestStoreLost(t *testing.T) {
	for _, running := range []bool{true, false} {
		bubble(t, fmt.Sprint("under a leader: ", running), func(t *testing.T, b *bench) {
			copy, stop := b.keepCopy()
			defer stop()
			empty := b.store.Snapshot()
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(time.Second)
			b.ask(store.RequestIssue, "hand", spec("hand.example.com"))
			shop, hand := b.stored("shop"), b.stored("hand")
			if !running {
				b.stop()
			}
			empty()
			b.store.EndLease(errors.New("the lock was deleted"))
			if !running {
				b.start()
			}
			b.demand("shop=shop.example.com")
			b.settle(5 * time.Second)
			if b.stored("shop").Fingerprint != shop.Fingerprint || b.stored("hand").Fingerprint != hand.Fingerprint {
				t.Error("another certificate")
			}
			if b.stored("shop").CA != b.ca.directory() || b.stored("shop").ARIID != shop.ARIID {
				t.Error("it is not known any more where it is from")
			}
			b.demand("shop=shop.example.com", "new=new.example.com")
			b.settle(5 * time.Second)
			if b.ca.total(orders) != 3 || b.ca.total(accounts) != 1 || b.count(store.KindIssued) != 3 {
				t.Errorf("%d orders, %d accounts, %d issued", b.ca.total(orders), b.ca.total(accounts), b.count(store.KindIssued))
			}
			synctest.Wait()
			if n, _ := copy.List(t.Context(), store.KindOrder); len(n.Entries) != 0 {
				t.Errorf("orders are left in the copy: %v", n.Entries)
			}
		})
	}
}

// An order that was open when the store was lost is gone on with.
func TestOrderLost(t *testing.T) {
	bubble(t, "with the account", func(t *testing.T, b *bench) {
		_, stop := b.keepCopy()
		defer stop()
		empty := b.store.Snapshot()
		b.rig(func(ca *model) { ca.validate = func(string) string { return "" } })
		b.ca.intercept = nil
		b.demand("shop=shop.example.com")
		lost := false
		b.ca.after = func(r *request) {
			if r.op == "finalize" && !lost {
				lost = true
				time.Sleep(time.Second) // the copy is made meanwhile
				empty()
				b.store.EndLease(errors.New("the lock was deleted"))
			}
		}
		b.rig(func(ca *model) { ca.validate = b.published })
		b.start()
		b.settle(10 * time.Second)
		b.demand("shop=shop.example.com")
		b.settle(time.Minute)
		if !lost || b.ca.total(orders) != 1 || b.count(store.KindIssued) != 1 {
			t.Errorf("%d orders, %d issued", b.ca.total(orders), b.count(store.KindIssued))
		}
	})
}

// The copy follows what is removed, keeps what is better, and keeps all of a store that was lost.
func TestCopy(t *testing.T) {
	bubble(t, "copy", func(t *testing.T, b *bench) {
		copy, stop := b.keepCopy()
		has := func(kind store.Kind, name string) *store.Certificate {
			e, err := copy.Get(t.Context(), store.Key{Kind: kind, Name: name})
			if err != nil {
				return nil
			}
			return e.Record.(*store.Certificate)
		}
		b.start()
		b.ask(store.RequestIssue, "hand", spec("hand.example.com"))
		b.ask(store.RequestIssue, "gone", spec("gone.example.com"))
		older := b.store.Snapshot()
		b.settle(day)
		b.ask(store.RequestRenew, "hand", store.Spec{})
		renewed := b.stored("hand").Fingerprint
		b.ask(store.RequestRemove, "gone", store.Spec{})
		b.settle(time.Second)
		if has(store.KindIssued, "gone") != nil || has(store.KindIssued, "hand").Fingerprint != renewed {
			t.Error("the copy is not up to date")
		}
		b.stop()
		older()
		b.settle(time.Second)
		if has(store.KindIssued, "hand").Fingerprint != renewed {
			t.Error("the better one is not kept")
		}
		stop()
	})
}
