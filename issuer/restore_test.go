package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// mates is a fleet of nodes in memory, each with a disk.
type mates struct {
	b *bench

	mu     sync.Mutex
	nodes  map[string]*Shelf
	mute   map[string]bool // live, but without an answer
	offers map[string]*store.Certificate
	told   func()
	asked  int
}

func (b *bench) join(nodes ...string) *mates {
	f := &mates{b: b, nodes: map[string]*Shelf{}, mute: map[string]bool{}, offers: map[string]*store.Certificate{}, told: func() {}}
	for _, n := range nodes {
		f.nodes[n] = &Shelf{
			Store: b.store, Logger: slog.New(slog.DiscardHandler), Disk: (&disk{}).read,
			Offer: func(_ context.Context, c *store.Certificate) error {
				f.put(n+"/"+c.Name, c)
				return nil
			},
			Withdraw: func(_ context.Context, name string) error {
				f.put(n+"/"+name, nil)
				return nil
			},
			Stored: func(name string) *store.Certificate { return read[*store.Certificate](b, store.KindIssued, name) },
			Names: func() (names []string) {
				l, _ := b.store.List(context.Background(), store.KindIssued)
				for _, e := range l.Entries {
					names = append(names, e.Key.Name)
				}
				return names
			},
		}
	}
	b.cfg.Fleet = f
	return f
}

func (f *mates) put(key string, c *store.Certificate) {
	f.mu.Lock()
	if f.offers[key] = c; c == nil {
		delete(f.offers, key)
	}
	told := f.told
	f.mu.Unlock()
	told()
}

func (f *mates) Live(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.nodes)), nil
}

func (f *mates) Ask(ctx context.Context, _ store.Lease, stored map[string]string) (missing []string, err error) {
	f.mu.Lock()
	f.asked++
	nodes, mute := maps.Clone(f.nodes), maps.Clone(f.mute)
	f.mu.Unlock()
	for n, s := range nodes {
		if mute[n] {
			missing = append(missing, n)
		} else if err := s.Answer(ctx, stored); err != nil {
			return nil, err
		}
	}
	if len(missing) > 0 {
		<-ctx.Done()
	}
	return missing, nil
}

func (f *mates) Offers(_ context.Context, name string) (offers []Offer, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, c := range f.offers {
		if node, n, _ := strings.Cut(key, "/"); name == "" || n == name {
			offers = append(offers, Offer{node, c})
		}
	}
	return offers, nil
}

func (f *mates) FollowOffers(ctx context.Context, changed func()) error {
	f.mu.Lock()
	f.told = changed
	f.mu.Unlock()
	changed()
	<-ctx.Done()
	return nil
}

func (f *mates) Reseal(context.Context, store.Lease) ([]string, error) { return nil, nil }

// disk is the PEM files of a node.
type disk map[string]*store.Bundle

func (d disk) read(_ context.Context, name, known string) (*store.Bundle, error) {
	if b := d[name]; b == nil || b.Fingerprint != known {
		return b, nil
	}
	return nil, nil
}

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
		other.CA = "https://evil.example/directory"
		f.put("f/shop", other)
		b.settle(time.Second)
		if c := b.stored("shop"); c.Fingerprint != other.Fingerprint || c.CA != "" {
			t.Errorf("the good one was not taken, or is said to be of %q", c.CA)
		}
	})
}

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
