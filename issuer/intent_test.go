package issuer

import (
	"bytes"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// intent is an order that was to be placed.
func (b *bench) intent(name string) *store.Order {
	b.t.Helper()
	key, err := newKey("")
	if err != nil {
		b.t.Fatal(err)
	}
	return &store.Order{
		Name: name, CA: b.ca.directory(), Account: "default", Spec: spec(name + ".example.com"), Private: store.NewSecret(key),
		Started: time.Now().UTC(),
	}
}

// An order that was not placed is dropped when nothing calls for it: the certificate is there, or nobody wants it.
func TestIntents(t *testing.T) {
	bubble(t, "found by the next leader", func(t *testing.T, b *bench) {
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		b.stop()
		b.leave(b.intent("shop"))
		b.leave(b.intent("nobodys"))
		b.start()
		b.settle(time.Second)
		b.clean()
		if b.ca.total(orders) != 1 {
			t.Errorf("%d orders", b.ca.total(orders))
		}
	})
	bubble(t, "called for", func(t *testing.T, b *bench) {
		b.demand("shop=shop.example.com")
		o := b.intent("shop")
		b.leave(o)
		b.start()
		b.settle(time.Second)
		if c := b.stored("shop"); !bytes.Equal(c.Private.Reveal(), o.Private.Reveal()) {
			t.Error("its key is not used")
		}
		b.clean()
	})
}
