package issuer

import (
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// signed is a certificate of the bench's CA of which nothing else is known.
func (b *bench) signed(at time.Time, domains ...string) *store.Bundle {
	b.t.Helper()
	secret, err := newKey("ec256")
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := parseKey(store.NewSecret(secret))
	if err != nil {
		b.t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(at.UnixNano()), NotBefore: at, NotAfter: at.Add(90 * day), DNSNames: domains}
	bundle, err := store.ParseBundle(chainPEM(b.ca.sign(leaf, b.ca.ca, key.Public(), b.ca.key), b.ca.ca), secret)
	if err != nil {
		b.t.Fatal(err)
	}
	return bundle
}

// What nodes have under a name that is wanted and not stored, and where it is from.
func TestOrigin(t *testing.T) {
	shop := storetest.Leaf{Domains: []string{"shop.example.com"}}
	for name, c := range map[string]struct {
		others bool // the store has another certificate, of the configured CA
		disks  func(b *bench) []*store.Bundle
		known  bool // by its copy, the first node knows of which CA its certificate is
		taken  int  // which of them; -1 for an order
	}{
		"all is lost, one issuer": {false, func(b *bench) []*store.Bundle {
			ca := b.authority()
			return []*store.Bundle{ca.Bundle(shop), ca.Bundle(storetest.Leaf{Domains: shop.Domains, NotBefore: time.Now().Add(-day)})}
		}, false, 0},
		"all is lost, two issuers": {false, func(b *bench) []*store.Bundle {
			return []*store.Bundle{b.authority().Bundle(shop), storetest.NewCA(b.t, "Company").Bundle(shop)}
		}, false, -1},
		"all is lost, one is known": {false, func(b *bench) []*store.Bundle {
			return []*store.Bundle{b.signed(time.Now().Add(-day), "shop.example.com"), storetest.NewCA(b.t, "Company").Bundle(storetest.Leaf{Domains: shop.Domains, NotBefore: time.Now()})}
		}, true, 0},
		"all is lost, not all names": {false, func(b *bench) []*store.Bundle {
			return []*store.Bundle{b.authority().Bundle(storetest.Leaf{Domains: []string{"www.example.com"}})}
		}, false, -1},
		"beside others, another issuer": {true, func(b *bench) []*store.Bundle {
			return []*store.Bundle{b.authority().Bundle(shop)}
		}, false, -1},
		"beside others, their issuer": {true, func(b *bench) []*store.Bundle {
			return []*store.Bundle{b.signed(time.Now().Add(-day), "shop.example.com")}
		}, false, 0},
	} {
		bubble(t, name, func(t *testing.T, b *bench) {
			f := b.join("one", "two")
			want := 1
			if c.others {
				b.demand("blog=blog.example.com")
				b.start()
				b.settle(time.Minute)
				want++
			}
			disks := c.disks(b)
			for n, bundle := range disks {
				f.nodes[[]string{"one", "two"}[n]].Disk = disk{"shop": bundle}.read
			}
			if c.known {
				f.nodes["one"].Copy = storetest.NewMemory()
				record := certificateOf("shop", disks[0])
				record.CA, record.IssuedAt = b.ca.directory(), record.NotBefore.Add(time.Hour)
				data, err := store.Encode(record, store.Plain{})
				if err != nil {
					t.Fatal(err)
				}
				f.nodes["one"].Copy.(*storetest.Memory).Edit(record.Key(), data)
			}
			domains := "shop.example.com"
			if c.taken < 0 && !c.others && len(disks) == 1 {
				domains += ",www.example.com"
			}
			if c.others {
				b.demand("blog=blog.example.com", "shop="+domains)
			} else {
				b.demand("shop=" + domains)
				b.start()
			}
			b.settle(time.Minute)
			if c.taken >= 0 {
				want--
				if b.stored("shop").Fingerprint != disks[c.taken].Fingerprint {
					t.Error("another one is stored")
				}
			}
			if n := b.ca.total(orders); n != want || b.stored("shop") == nil {
				t.Errorf("%d orders, want %d", n, want)
			}
		})
	}
}

// What somebody puts into a node's folder by hand does not become the fleet's.
func TestPutByHand(t *testing.T) {
	bubble(t, "unasked", func(t *testing.T, b *bench) {
		f := b.join("one", "two")
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		good := b.stored("shop").Fingerprint
		b.settle(day)
		foreign := certificateOf("shop", storetest.NewCA(t, "Company").Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: time.Now()}))
		f.put("two/shop", foreign)
		b.settle(time.Minute)
		if b.stored("shop").Fingerprint != good {
			t.Error("a certificate of another issuer was taken")
		}
		ours := certificateOf("shop", b.signed(time.Now(), "shop.example.com"))
		f.put("two/shop", ours)
		b.settle(time.Minute)
		if b.stored("shop").Fingerprint != ours.Fingerprint || b.ca.total(orders) != 1 {
			t.Errorf("one of our issuer was not taken, %d orders", b.ca.total(orders))
		}
	})
}
