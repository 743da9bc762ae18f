package issuer

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spoacme/spoacme/store"
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
