package issuer

import (
	"fmt"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func TestIssue(t *testing.T) {
	bubble(t, "one", func(t *testing.T, b *bench) {
		b.demand("shop=shop.example.com,www.example.com")
		b.start()
		b.settle(time.Second)
		c := read[*store.Certificate](b, store.KindIssued, "shop")
		if c == nil {
			t.Fatal("not issued")
		}
		bundle, err := c.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		if bundle.Serial != "1001" || c.CA != b.ca.directory() || c.ARIID == "" || c.Generation != 1 {
			t.Errorf("issued %+v", c)
		}
		left := c.NotAfter.Sub(c.RenewAt)
		if third := c.NotAfter.Sub(c.NotBefore) / 3; left < third || left > third*11/10 {
			t.Errorf("to be renewed with %s left", left)
		}
		b.clean()
		if b.ca.total(orders) != 1 || b.ca.total(accounts) != 1 {
			t.Errorf("%d orders, %d accounts", b.ca.total(orders), b.ca.total(accounts))
		}
	})
	bubble(t, "many", func(t *testing.T, b *bench) {
		var certs []string
		for i := range 120 {
			certs = append(certs, fmt.Sprintf("c%d=c%d.example.com", i, i))
		}
		b.demand(certs...)
		b.start()
		b.settle(10 * time.Second)
		if n := b.count(store.KindIssued); n != 120 {
			t.Errorf("%d issued", n)
		}
		if b.ca.total(most) > 50 || b.ca.total(most) < 40 || b.ca.total(accounts) != 1 {
			t.Errorf("%d orders at once, %d accounts", b.ca.total(most), b.ca.total(accounts))
		}
		b.clean()
	})
	bubble(t, "bad nonces", func(t *testing.T, b *bench) {
		b.ca.nonce = true
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Minute)
		if b.count(store.KindIssued) != 1 {
			t.Error("not issued")
		}
	})
}
