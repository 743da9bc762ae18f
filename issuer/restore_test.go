package issuer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

func (b *bench) authority() *storetest.CA { return storetest.NewCA(b.t, "Old CA") }

// served is the certificate of a name in the store, which must be there.
func (b *bench) stored(name string) *store.Certificate {
	b.t.Helper()
	c := read[*store.Certificate](b, store.KindIssued, name)
	if c == nil {
		b.t.Fatalf("%s is not stored", name)
	}
	return c
}

// The store of a node on its own was lost: what is on disk is taken back, unless it is nothing that anybody should serve.
func TestTakenFromDisk(t *testing.T) {
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		leaf  func() storetest.Leaf
		taken bool
	}{
		"good": {func() storetest.Leaf { return storetest.Leaf{Domains: []string{"shop.example.com"}} }, true},
		"expired": {func() storetest.Leaf {
			return storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now().Add(-91 * day)}
		}, false},
		"not yet valid": {func() storetest.Leaf {
			return storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now().Add(day)}
		}, false},
		"self-signed": {func() storetest.Leaf { return storetest.Leaf{Domains: []string{"shop.example.com"}, SelfSigned: true} }, false},
		"other names": {func() storetest.Leaf { return storetest.Leaf{Domains: []string{"x.example.com"}} }, false},
	} {
		bubble(t, name, func(t *testing.T, b *bench) {
			d := disk{"shop": b.authority().Bundle(c.leaf())}
			b.cfg.Disk = d.read
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(time.Minute)
			taken := b.stored("shop").Fingerprint == d["shop"].Fingerprint
			if taken != c.taken || taken == (b.ca.total(orders) > 0) {
				t.Errorf("taken %t, %d orders", taken, b.ca.total(orders))
			}
		})
	}
	bubble(t, "old, and due", func(t *testing.T, b *bench) {
		d := disk{"shop": b.authority().Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now().Add(-80 * day)})}
		b.cfg.Disk = d.read
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Minute)
		if b.ca.total(orders) != 1 || b.stored("shop").Fingerprint == d["shop"].Fingerprint {
			t.Errorf("%d orders", b.ca.total(orders))
		}
	})
	bubble(t, "without a name that is wanted too", func(t *testing.T, b *bench) {
		d := disk{"shop": b.authority().Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}})}
		b.cfg.Disk = d.read
		b.demand("shop=shop.example.com,www.example.com")
		b.start()
		b.settle(time.Minute)
		if c := b.stored("shop"); b.ca.total(orders) != 1 || len(c.Domains) != 2 {
			t.Errorf("%d orders, %v", b.ca.total(orders), c.Domains)
		}
	})
}

// A name that no node has on disk is ordered at once; one that some node has is not ordered; a node that says nothing is
// waited for, once.
func TestAskedBeforeOrders(t *testing.T) {
	bubble(t, "a new fleet", func(t *testing.T, b *bench) {
		f := b.join("one", "two")
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.start()
		b.settle(2 * time.Second)
		if b.count(store.KindIssued) != 2 || f.asked > 2 {
			t.Errorf("%d issued after %d questions", b.count(store.KindIssued), f.asked)
		}
	})
	bubble(t, "two nodes have it", func(t *testing.T, b *bench) {
		f, ca := b.join("one", "two", "three"), b.authority()
		older := ca.Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now().Add(-day)})
		newer := ca.Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}})
		f.nodes["one"].Disk = disk{"shop": older}.read
		f.nodes["three"].Disk = disk{"shop": newer}.read
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(2 * time.Second)
		if c := b.stored("shop"); c.Fingerprint != newer.Fingerprint || b.ca.total(orders) != 0 {
			t.Errorf("%d orders, not the newer one: %t", b.ca.total(orders), c.Fingerprint == older.Fingerprint)
		}
	})
	bubble(t, "a node is mute", func(t *testing.T, b *bench) {
		f := b.join("one", "two")
		f.mute["two"] = true
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(askFor - time.Second)
		if b.ca.total(orders) != 0 {
			t.Error("ordered before everybody had the time to answer")
		}
		b.settle(3 * time.Second)
		if b.count(store.KindIssued) != 1 {
			t.Error("not ordered after that")
		}
	})
	bubble(t, "an operator's renew asks nobody", func(t *testing.T, b *bench) {
		f := b.join("one")
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		f.mute["one"] = true
		first := b.stored("shop").Serial
		b.ask(store.RequestRenew, "shop", store.Spec{})
		if b.stored("shop").Serial == first {
			t.Error("not renewed at once")
		}
	})
}

// A snapshot from before a renewal is restored: the nodes offer what they have, and the leader takes it.
func TestOlderSnapshot(t *testing.T) {
	bubble(t, "offered", func(t *testing.T, b *bench) {
		f := b.join("one", "two")
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		restore := b.store.Snapshot()
		b.settle(day)
		b.ask(store.RequestRenew, "shop", store.Spec{})
		renewed := b.stored("shop")
		bundle, err := renewed.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, s := range f.nodes {
			s.Disk = disk{"shop": bundle}.read
			wg.Go(func() { _ = s.Run(ctx) })
		}
		restore()
		for _, s := range f.nodes {
			s.Poke("shop")
		}
		b.settle(5 * time.Second)
		c := b.stored("shop")
		if c.Fingerprint != renewed.Fingerprint || c.CA != b.ca.directory() || b.ca.total(orders) != 2 {
			t.Errorf("stored %s of %q, %d orders", c.Serial, c.CA, b.ca.total(orders))
		}
		for _, s := range f.nodes {
			s.Poke("shop")
		}
		b.settle(time.Minute)
		if len(f.offers) != 0 {
			t.Errorf("%d offers are left", len(f.offers))
		}
		cancel()
		wg.Wait()
	})
}

// A snapshot from between a renew and its certificate is restored: the renew was carried out, and whoever has what came of
// it is believed before another one is ordered.
func TestOlderRenew(t *testing.T) {
	for name, who := range map[string]string{"on our own disk": "", "on another node": "two", "lost with its node": "nobody"} {
		bubble(t, name, func(t *testing.T, b *bench) {
			f := b.join("one", "two")
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(time.Second)
			restore := b.store.Snapshot()
			b.settle(day)
			b.ask(store.RequestRenew, "shop", store.Spec{})
			renewed, wanted := b.stored("shop"), read[*store.Wanted](b, store.KindWanted, "shop")
			bundle, err := renewed.Bundle()
			if err != nil {
				t.Fatal(err)
			}
			b.stop()
			restore()
			b.leave(wanted)
			want := 2
			switch d := (disk{"shop": bundle}); who {
			case "":
				b.cfg.Disk = d.read
			case "nobody":
				want = 3
			default:
				f.nodes[who].Disk = d.read
			}
			b.start()
			b.settle(10 * time.Second)
			if c := b.stored("shop"); b.ca.total(orders) != want || want == 2 && c.Fingerprint != renewed.Fingerprint {
				t.Errorf("%d orders, want %d; serial %s after %s", b.ca.total(orders), want, c.Serial, renewed.Serial)
			}
			b.settle(time.Hour)
			b.clean()
			if b.ca.total(orders) != want {
				t.Errorf("%d orders after an hour", b.ca.total(orders))
			}
		})
	}
}

// An order that a restore brings back does not replace what came of a later one.
func TestOlderOrder(t *testing.T) {
	for name, again := range map[string]bool{"with a later certificate": false, "with its own certificate": true} {
		bubble(t, name, func(t *testing.T, b *bench) {
			b.demand("shop=shop.example.com")
			var older *store.Order
			b.ca.after = func(r *request) {
				if o := read[*store.Order](b, store.KindOrder, "shop"); r.op == "finalize" && older == nil {
					older = o
				}
			}
			b.start()
			b.settle(time.Second)
			if !again {
				b.settle(day)
				b.ask(store.RequestRenew, "shop", store.Spec{})
			}
			want := b.stored("shop")
			b.stop()
			b.leave(older)
			b.start()
			b.settle(5 * time.Second)
			b.clean()
			if c := b.stored("shop"); c.Fingerprint != want.Fingerprint || !c.IssuedAt.Equal(want.IssuedAt) {
				t.Errorf("stored is %s of %s, was %s of %s", c.Serial, c.IssuedAt, want.Serial, want.IssuedAt)
			}
			b.settle(time.Hour)
			if n := b.ca.total(orders); again && n != 1 || !again && n != 2 {
				t.Errorf("%d orders", n)
			}
		})
	}
}

// News of offers is kept while the store can't be read.
func TestOfferWhileStoreFails(t *testing.T) {
	bubble(t, "no cluster leader", func(t *testing.T, b *bench) {
		i, err := New(b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		tm := &term{Issuer: i, ctx: t.Context(), wake: make(chan struct{}, 1), desk: newDesk(), news: news{keys: map[store.Key]bool{}}}
		b.store.OnRead = func(store.Key) error { return errors.New("no cluster leader") }
		tm.changedKeys(nil)
		tm.offered()
		if err := tm.learn(t.Context()); err == nil {
			t.Fatal("the store did not fail")
		}
		b.store.OnRead = nil
		if err := tm.learn(t.Context()); err != nil || tm.offersAt.IsZero() {
			t.Errorf("the news of an offer is lost: %v", err)
		}
	})
}

// What is offered is not believed.
func TestBadOffers(t *testing.T) {
	bubble(t, "refused", func(t *testing.T, b *bench) {
		f, ca := b.join("one"), b.authority()
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		good := b.stored("shop").Fingerprint
		ours := storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now()}
		other := ca.Certificate("shop", ours)
		for n, c := range map[string]*store.Certificate{
			"a": ca.Certificate("shop", storetest.Leaf{Domains: []string{"evil.example"}, NotBefore: time.Now()}),
			"b": ca.Certificate("shop", storetest.Leaf{Domains: ours.Domains, NotBefore: time.Now(), SelfSigned: true}),
			"c": ca.Certificate("shop", storetest.Leaf{Domains: ours.Domains, NotBefore: time.Now().Add(day)}),
			"d": ca.Certificate("unknown", ours),
			"e": ca.Certificate("shop", storetest.Leaf{Domains: ours.Domains, NotBefore: time.Now().Add(-day)}),
		} {
			if n == "a" {
				wrong := *c
				wrong.Private = other.Private // another key
				f.put("two/shop", &wrong)
			}
			f.put(n+"/shop", c)
		}
		b.settle(time.Minute)
		if b.stored("shop").Fingerprint != good || read[*store.Certificate](b, store.KindIssued, "unknown") != nil {
			t.Error("a bad one was taken")
		}
		f.put("e/shop", nil) // it says that its issuer is ours
		for _, directory := range []string{"https://evil.example/directory", ""} {
			foreign := *other
			foreign.CA = directory
			f.put("f/shop", &foreign)
			b.settle(time.Minute)
			if b.stored("shop").Fingerprint != good {
				t.Errorf("one of %q was taken", directory)
			}
		}
		f.put("f/shop", other)
		b.settle(time.Second)
		if c := b.stored("shop"); c.Fingerprint != other.Fingerprint || c.CA != b.ca.directory() {
			t.Errorf("the good one was not taken, or is said to be of %q", c.CA)
		}
	})
}

// What an operator has removed does not come back from a node that was down: not by itself, and not in place of the order when the
// name is asked for again, also long after.
func TestRemovedStaysRemoved(t *testing.T) {
	for _, later := range []time.Duration{time.Minute, 3 * time.Hour, remembered - time.Hour} {
		bubble(t, later.String(), func(t *testing.T, b *bench) {
			f := b.join("one")
			spec := store.Spec{Domains: []string{"shop.example.com"}}
			b.start()
			b.ask(store.RequestIssue, "shop", spec)
			b.settle(time.Minute)
			first := b.stored("shop")
			bundle, err := first.Bundle()
			if err != nil {
				t.Fatal(err)
			}
			if r := b.ask(store.RequestRemove, "shop", store.Spec{}); r.Error != "" {
				t.Fatal(r.Error)
			}
			f.nodes["one"].Disk = disk{"shop": bundle}.read
			f.nodes["one"].Poke("shop")
			b.settle(later)
			if n := b.count(store.KindIssued); n != 0 {
				t.Fatalf("%d certificates after the removal", n)
			}
			b.ask(store.RequestIssue, "shop", spec)
			b.settle(2 * time.Minute)
			if c := b.stored("shop"); c.Fingerprint == first.Fingerprint || b.ca.total(orders) != 2 {
				t.Errorf("%d orders, the removed one is back: %t", b.ca.total(orders), c.Fingerprint == first.Fingerprint)
			}
			b.settle(remembered + day)
			if n := b.count(store.KindRequest); n != 0 {
				t.Errorf("%d requests are kept for ever", n)
			}
		})
	}
}
