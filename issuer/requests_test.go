package issuer

import (
	"net/http"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Who asks for a renewal after failures knows that they are over.
func TestRenewAfterFailures(t *testing.T) {
	bubble(t, "when the CA is mended", func(t *testing.T, b *bench) {
		b.ca.intercept = func(*request) *http.Response { return unreachable }
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(100 * time.Minute)
		before := read[*store.Attempt](b, store.KindAttempt, "shop")
		b.ask(store.RequestRenew, "shop", store.Spec{})
		after := read[*store.Attempt](b, store.KindAttempt, "shop")
		if after == nil || !after.Tried.After(before.Tried) || after.Error != before.Error || after.Failures != 2 {
			t.Errorf("not tried at once, or the error is gone: %+v", after)
		}
		b.rig(func(ca *model) { ca.intercept = nil })
		if b.ask(store.RequestRenew, "shop", store.Spec{}); b.count(store.KindIssued) != 1 {
			t.Error("not issued at once")
		}
		b.clean()
	})
	bubble(t, "while the CA demands silence", func(t *testing.T, b *bench) {
		failName("shop.example.com")(b)
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(10 * time.Minute)
		want := read[*store.Attempt](b, store.KindAttempt, "shop").Error
		b.leave(&store.Budget{CA: CAID(b.ca.directory()), Until: time.Now().Add(time.Hour), Error: "busy"})
		b.settle(time.Second)
		before := b.ca.total(requests)
		b.ask(store.RequestRenew, "shop", store.Spec{})
		if a := read[*store.Attempt](b, store.KindAttempt, "shop"); a == nil || a.Error != want || a.Next.After(time.Now()) {
			t.Errorf("the error is gone, or the pause is not: %+v", a)
		}
		if n := b.ca.total(requests) - before; n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}
