package issuer

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// The store's directory of a node on its own is put back to an older state: what HAProxy has is taken back.
func TestOlderDirectory(t *testing.T) {
	for name, running := range map[string]bool{"under the process": true, "while it was down": false} {
		bubble(t, name, func(t *testing.T, b *bench) {
			d := disk{}
			var late atomic.Bool // HAProxy is found a little later
			b.cfg.Disk = func(ctx context.Context, name, known string) (*store.Bundle, error) {
				if !late.Load() {
					return nil, nil
				}
				return d.read(ctx, name, known)
			}
			b.demand("shop=shop.example.com", "blog=blog.example.com")
			b.start()
			b.settle(time.Second)
			restore := b.store.Snapshot()
			b.settle(day)
			b.ask(store.RequestRenew, "shop", store.Spec{})
			shop, blog := b.stored("shop"), b.stored("blog")
			bundle, err := shop.Bundle()
			if err != nil {
				t.Fatal(err)
			}
			d["shop"] = bundle
			d["blog"] = storetest.NewCA(t, "Company").Bundle(storetest.Leaf{Domains: []string{"blog.example.com"}, NotBefore: time.Now()})
			if running {
				late.Store(true)
				restore()
				b.settle(time.Second)
			} else {
				b.stop()
				restore()
				b.start()
				b.settle(30 * time.Second)
				late.Store(true)
				b.settle(time.Minute)
			}
			if b.stored("shop").Fingerprint != shop.Fingerprint || b.stored("blog").Fingerprint != blog.Fingerprint || b.ca.total(orders) != 3 {
				t.Errorf("the renewed one is back: %t, the other's is kept: %t, %d orders", b.stored("shop").Fingerprint == shop.Fingerprint,
					b.stored("blog").Fingerprint == blog.Fingerprint, b.ca.total(orders))
			}
			asked := b.ca.total(requests)
			b.settle(day)
			if n := b.ca.total(requests) - asked; n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
}
