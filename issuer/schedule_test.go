package issuer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

const day = 24 * time.Hour

func TestDraw(t *testing.T) {
	from := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ life, least, most time.Duration }{ // left at the renewal
		{time.Hour, 30 * time.Minute, 33 * time.Minute},
		{160 * time.Hour, 80 * time.Hour, 88 * time.Hour},
		{10 * day, 80 * time.Hour, 88 * time.Hour},
		{45 * day, 15 * day, 15*day + 36*time.Hour},
		{90 * day, 30 * day, 33 * day},
	} {
		seen := map[time.Time]bool{}
		for range 50 {
			at := draw(from, from.Add(c.life), rand.N[time.Duration])
			if left := from.Add(c.life).Sub(at); left < c.least || left > c.most {
				t.Errorf("lifetime %s: renewed with %s left, want %s to %s", c.life, left, c.least, c.most)
			}
			seen[at] = true
		}
		if len(seen) < 25 {
			t.Errorf("lifetime %s: %d different draws of 50", c.life, len(seen))
		}
	}
	if at := draw(from, from, rand.N[time.Duration]); !at.Equal(from) {
		t.Errorf("no lifetime: %s", at)
	}
}

func TestDue(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	names := []string{"a.example", "b.example"}
	fresh := facts{domains: names, notBefore: now.Add(-time.Hour), notAfter: now.Add(90*day - time.Hour),
		issuedAt: now, renewAt: now.Add(60 * day)}
	with := func(change func(*facts)) *facts {
		f := fresh
		change(&f)
		return &f
	}
	for _, c := range []struct {
		name string
		w    store.Wanted
		c    *facts
		now  time.Time
		want reason
		at   time.Time
	}{
		{"nothing there", store.Wanted{}, nil, now, firstOne, now},
		{"fresh", store.Wanted{}, &fresh, now, notDue, fresh.renewAt},
		{"its time", store.Wanted{}, &fresh, now.Add(60 * day), aged, now.Add(60 * day)},
		{"expired", store.Wanted{}, &fresh, now.Add(900 * day), aged, now.Add(900 * day)},
		{"without a draw", store.Wanted{}, with(func(f *facts) { f.renewAt = time.Time{} }), now, notDue, now.Add(60*day - time.Hour)},
		{"a draw after the end", store.Wanted{}, with(func(f *facts) { f.renewAt = now.Add(200 * day) }), now, notDue, now.Add(60*day - time.Hour)},
		{"a name more", store.Wanted{Spec: store.Spec{Domains: []string{"a.example", "c.example"}}}, &fresh, now, newNames, now},
		{"a name less", store.Wanted{Spec: store.Spec{Domains: names[:1]}}, &fresh, now, notDue, fresh.renewAt},
		{"asked for after it", store.Wanted{RenewAsked: now.Add(time.Second)}, &fresh, now, asked, now},
		{"asked for before it", store.Wanted{RenewAsked: now}, &fresh, now, notDue, fresh.renewAt},
		{"our clock two months ahead", store.Wanted{}, with(func(f *facts) {
			f.notBefore, f.notAfter, f.renewAt = now.Add(-90*day), now.Add(-1), now.Add(-30*day)
		}), now, notDue, now.Add((90*day - 1) / 4)},
		{"stored in the future", store.Wanted{}, with(func(f *facts) { f.issuedAt = now.Add(9 * day); f.renewAt = now.Add(-1) }), now, aged, now},
	} {
		if why, at := due(&c.w, c.c, c.now); why != c.want || !at.Equal(c.at) {
			t.Errorf("%s: %q at %s, want %q at %s", c.name, why, at, c.want, c.at)
		}
	}
}

// Over its life a certificate is renewed as often as its lifetime says, and the old one serves until then.
func TestRenewals(t *testing.T) {
	for _, c := range []struct {
		lifetime, passes time.Duration
		least, most      int
	}{
		{time.Hour + time.Hour, 24 * time.Hour, 22, 60}, // an hour of it is in the past when it is issued
		{160 * time.Hour, 15 * day, 5, 6},
	} {
		bubble(t, c.lifetime.String(), func(t *testing.T, b *bench) {
			b.ca.lifetime = c.lifetime
			b.demand("shop=shop.example.com")
			b.start()
			for end := time.Now().Add(c.passes); time.Now().Before(end); {
				b.settle(c.passes / 100)
				if r := read[*store.Certificate](b, store.KindIssued, "shop"); r == nil || r.NotAfter.Before(time.Now()) {
					t.Fatal("nothing valid is stored")
				}
			}
			if n := b.ca.issued()["shop.example.com"]; n < c.least || n > c.most {
				t.Errorf("%d certificates in %s, want %d to %d", n, c.passes, c.least, c.most)
			}
		})
	}
}

// A clock that is wrong renews nothing: not when it is ahead of the CA's, and not in a loop.
func TestWrongClock(t *testing.T) {
	bubble(t, "the machine two months ahead", func(t *testing.T, b *bench) {
		var certs []string
		for i := range 20 {
			certs = append(certs, fmt.Sprintf("c%d=c%d.example.com", i, i))
		}
		b.demand(certs...)
		b.start()
		b.settle(time.Minute)
		b.ca.skew = -65 * day // as if the machine's clock had been set forward
		b.stop()
		b.settle(65 * day)
		b.start()
		b.settle(12 * time.Hour)
		if n := b.ca.total(orders); n != 20 {
			t.Errorf("%d orders, want none but the first 20", n)
		}
		if n := b.ca.total(requests); n > 20*20+20 {
			t.Errorf("%d requests", n)
		}
	})
	bubble(t, "the machine a day behind, short lives", func(t *testing.T, b *bench) {
		b.ca.skew, b.ca.lifetime = day, 7*time.Hour
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(day)
		if n := b.ca.total(orders); n > 8 || b.count(store.KindIssued) != 1 {
			t.Errorf("%d orders in a day, %d stored", n, b.count(store.KindIssued))
		}
	})
	bubble(t, "the machine a day ahead, short lives", func(t *testing.T, b *bench) {
		b.ca.skew, b.ca.lifetime = -day, 7*time.Hour
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(day)
		if n := b.ca.total(orders); n > 12 || b.count(store.KindIssued) != 1 {
			t.Errorf("%d orders in a day, %d stored", n, b.count(store.KindIssued))
		}
	})
}
