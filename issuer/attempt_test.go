package issuer

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// What an attempt counts: failures, whoever found out. A process that died has not found out.
func TestAttempts(t *testing.T) {
	i := &Issuer{jitter: func(time.Duration) time.Duration { return 0 }}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	unavailable := &failure{class: classUnavailable, err: errors.New("it is down")}
	nobody := errNobody
	over := &failure{class: classDomain, gone: true, err: errors.New("no answer")}
	for _, c := range []struct {
		name     string
		before   []*failure // what earlier tries came to; nil: they were cut short
		resumed  bool
		last     *failure
		failures int
		wait     time.Duration
	}{
		{"the first", nil, false, over, 1, time.Minute},
		{"the second", []*failure{over}, false, over, 2, 3 * time.Minute},
		{"of an order that a dead process left", []*failure{nil}, true, over, 1, time.Minute},
		{"of one that three left", []*failure{nil, nil, nil}, true, over, 1, time.Minute},
		{"of one that was left after a failure", []*failure{over, nil}, true, over, 2, 3 * time.Minute},
		{"of an order that had to wait", []*failure{unavailable}, true, over, 1, time.Minute},
		{"of an order that has to wait again", []*failure{unavailable}, true, unavailable, 2, 3 * time.Minute},
		{"of nobody being there", nil, false, nobody, 1, 30 * time.Second},
		{"of nobody being there again", []*failure{nobody, nobody, nobody}, true, nobody, 1, 30 * time.Second},
		{"of nobody being there any more", []*failure{over, over}, false, nobody, 2, 30 * time.Second},
		{"after nobody was there", []*failure{nobody, nobody, nobody}, true, over, 1, time.Minute},
		{"of the order after one that had to wait", []*failure{unavailable}, false, over, 2, 3 * time.Minute},
	} {
		var a *store.Attempt
		for _, f := range c.before {
			prev := a
			a = i.begun("shop", "https://ca.example/d", prev, now)
			if f != nil {
				a = i.afterwards(a, prev, f, false, now)
			}
		}
		b := i.afterwards(i.begun("shop", "https://ca.example/d", a, now), a, c.last, c.resumed, now)
		if b.Failures != c.failures || b.Next.Sub(now) != c.wait || b.CutShort != 0 {
			t.Errorf("a failure %s: %d failures, %s, cut short %d; want %d, %s", c.name, b.Failures, b.Next.Sub(now), b.CutShort, c.failures, c.wait)
		}
	}
}

// A process that dies at every try is not a loop at the CA.
func TestCutShortAgainAndAgain(t *testing.T) {
	i := &Issuer{jitter: func(time.Duration) time.Duration { return 0 }}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	var a *store.Attempt
	for n := 1; n <= 6; n++ {
		a = i.begun("shop", "https://ca.example/d", a, now)
		if atOnce := ready(a, now).IsZero(); atOnce != (n <= mayCutShort) {
			t.Errorf("after %d tries: at once %t, next in %s", n, atOnce, a.Next.Sub(now))
		}
	}
}

// The order of a process that died fails: that is one failure.
func TestResumedOrderFails(t *testing.T) {
	bubble(t, "validation", func(t *testing.T, b *bench) {
		failName("shop.example.com")(b)
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "authz" {
				b.store.EndLease(errKilled)
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(500 * time.Millisecond)
		b.stop()
		b.rig(func(ca *model) { ca.intercept = nil })
		if o := read[*store.Order](b, store.KindOrder, "shop"); o == nil || o.URL == "" {
			t.Fatal("the order is not recorded")
		}
		b.start()
		b.settle(10 * time.Second)
		a := read[*store.Attempt](b, store.KindAttempt, "shop")
		if a == nil || a.Error == "" {
			t.Fatal("no failure is stored")
		}
		if p := a.Next.Sub(a.Tried); a.Failures != 1 || p > 70*time.Second {
			t.Errorf("%d failures, pause %s", a.Failures, p)
		}
	})
}
