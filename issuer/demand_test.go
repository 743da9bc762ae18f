package issuer

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func spec(domains ...string) store.Spec { return store.Spec{Domains: domains} }

func many(prefix string, n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%s%d.example", prefix, i))
	}
	return all
}

func TestMerged(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	old := &store.Wanted{Name: "shop", Generation: 3, Sources: []string{"a"}, Spec: spec("a.example", "b.example")}
	by := func(node string, ago time.Duration, s store.Spec) wish { return wish{node, now.Add(-ago), s, true} }
	profile := spec("a.example", "b.example")
	profile.Profile = "shortlived"
	for _, c := range []struct {
		name   string
		old    *store.Wanted
		wishes []wish // newest first
		want   string // generation, sources, domains, profile; empty: no change
		hold   time.Duration
	}{
		{"first", nil, []wish{by("a", 0, spec("a.example"))}, "1 [a] [a.example] ", 0},
		{"first, two nodes differ", nil, []wish{by("b", 0, spec("b.example")), by("a", time.Hour, spec("a.example"))},
			"1 [a b] [b.example a.example] ", 0},
		{"unchanged", old, []wish{by("a", 0, spec("b.example", "a.example"))}, "", 0},
		{"changed by the only node", old, []wish{by("a", 0, spec("c.example"))}, "4 [a] [c.example] ", 0},
		{"options only", old, []wish{by("a", 0, profile)}, "4 [a] [a.example b.example] shortlived", 0},
		{"a second node agrees", old, []wish{by("b", 0, old.Spec), by("a", 0, old.Spec)}, "3 [a b] [a.example b.example] ", 0},
		{"a second node wants more, just now", old, []wish{by("b", time.Minute, spec("c.example")), by("a", day, old.Spec)},
			"3 [a b] [a.example b.example] ", 9 * time.Minute},
		{"a second node wants more, for long", old, []wish{by("b", time.Hour, spec("c.example")), by("a", day, old.Spec)},
			"4 [a b] [c.example a.example b.example] ", 0},
		{"newest options win", old, []wish{by("b", time.Hour, profile), by("a", day, old.Spec)},
			"4 [a b] [a.example b.example] shortlived", 0},
		{"a union over 100 names", old, []wish{by("b", time.Hour, spec(many("x", 60)...)), by("a", day, spec(many("y", 60)...))},
			"4 [a b] [" + strings.Join(many("x", 60), " ") + "] ", 0},
		{"a union that needs dns-01", old, []wish{by("b", time.Hour, spec("c.example")), by("a", day, store.Spec{
			Domains: []string{"*.example"}, Challenge: "dns-01", DNS: "route53"})}, "4 [a b] [c.example] ", 0},
	} {
		w, hold := merged("shop", c.old, nil, nil, c.wishes, now)
		got := ""
		if w != nil {
			got = fmt.Sprint(w.Generation, " ", w.Sources, " ", w.Spec.Domains, " ", w.Spec.Profile)
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if (hold.IsZero() && c.hold != 0) || (!hold.IsZero() && hold.Sub(now) != c.hold) {
			t.Errorf("%s: hold %s, want %s", c.name, hold.Sub(now), c.hold)
		}
	}
}

func TestMergeWithdraws(t *testing.T) {
	x := newIndex()
	x.wanted["gone"] = &store.Wanted{Name: "gone", Generation: 1, Sources: []string{"a"}, Spec: spec("a.example")}
	x.wanted["hand"] = &store.Wanted{Name: "hand", Generation: 1, IssuedByHand: true, Spec: spec("b.example")}
	x.partial = true
	if changed, _ := x.merge(time.Now(), nil); len(changed) != 0 {
		t.Errorf("with an unreadable demand %v is withdrawn", changed)
	}
	x.partial = false
	changed, _ := x.merge(time.Now(), nil)
	if len(changed) != 1 || changed[0].Name != "gone" || len(changed[0].Sources) != 0 || changed[0].Generation != 1 {
		t.Errorf("changed %+v", changed)
	}
}

// ask puts a request and returns what came of it.
func (b *bench) ask(op, name string, s store.Spec) *store.Request {
	b.t.Helper()
	id := fmt.Sprintf("%s-%s-%d", op, name, time.Now().UnixNano())
	b.put(&store.Request{ID: id, Op: op, Certificate: name, Spec: s, Asked: time.Now()})
	b.settle(2 * time.Second)
	r := read[*store.Request](b, store.KindRequest, id)
	if r == nil || r.Done.IsZero() {
		b.t.Fatalf("%s %s was not carried out", op, name)
	}
	return r
}

func TestRequests(t *testing.T) {
	bubble(t, "issue, renew, remove", func(t *testing.T, b *bench) {
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		for _, step := range []struct {
			op, name string
			spec     store.Spec
			refused  string
			issued   []string
			orders   int
		}{
			{store.RequestIssue, "blog", spec("blog.example.com"), "", []string{"blog", "shop"}, 2},
			{store.RequestIssue, "blog", spec("blog.example.com"), "", []string{"blog", "shop"}, 2},
			{store.RequestIssue, "blog", spec("blog.example.com", "b.example.com"), "", []string{"blog", "shop"}, 3},
			{store.RequestIssue, "shop", spec("shop.example.com", "b.example.com"),
				"issue shop: haproxy.cfg of one asks for it with other words; change SPOACME_CERT_shop there", []string{"blog", "shop"}, 3},
			{store.RequestRenew, "shop", store.Spec{}, "", []string{"blog", "shop"}, 4},
			{store.RequestRenew, "nix", store.Spec{}, "renew nix: no certificate of this name is wanted; see status for those that are", []string{"blog", "shop"}, 4},
			{store.RequestRemove, "shop", store.Spec{}, "remove shop: haproxy.cfg of one asks for it; take it out of SPOACME_CERTS there first", []string{"blog", "shop"}, 4},
			{store.RequestRemove, "nix", store.Spec{}, "remove nix: there is no certificate of this name", []string{"blog", "shop"}, 4},
			{store.RequestRemove, "blog", store.Spec{}, "", []string{"shop"}, 4},
		} {
			r := b.ask(step.op, step.name, step.spec)
			if r.Error != step.refused {
				t.Errorf("%s %s: %q, want %q", step.op, step.name, r.Error, step.refused)
			}
			var issued []string
			l, _ := b.store.List(t.Context(), store.KindIssued)
			for _, e := range l.Entries {
				issued = append(issued, e.Key.Name)
			}
			if !slices.Equal(issued, step.issued) || b.ca.total(orders) != step.orders {
				t.Errorf("%s %s: issued %v with %d orders, want %v with %d", step.op, step.name, issued, b.ca.total(orders), step.issued, step.orders)
			}
		}
		b.settle(2 * time.Hour)
		if n := b.count(store.KindRequest); n != 0 {
			t.Errorf("%d requests are kept", n)
		}
		if b.ca.total(orders) != 4 {
			t.Errorf("%d orders: renew is not once", b.ca.total(orders))
		}
	})
}

func TestRequestsAtOddTimes(t *testing.T) {
	bubble(t, "renew during a pause", func(t *testing.T, b *bench) {
		failName("shop.example.com")(b)
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(10 * time.Minute)
		b.rig(func(ca *model) { ca.validate = b.published })
		if b.ask(store.RequestRenew, "shop", store.Spec{}); b.count(store.KindIssued) != 1 {
			t.Error("not tried at once")
		}
	})
	bubble(t, "remove during an order", func(t *testing.T, b *bench) {
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "challenge" { // it never gets round to it
				return reply(200, map[string]string{"status": "processing"})
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(120 * time.Millisecond)
		b.demand()
		if r := b.ask(store.RequestRemove, "shop", store.Spec{}); r.Error != "" {
			t.Error(r.Error)
		}
		b.clean()
		if b.count(store.KindWanted) != 0 {
			t.Error("still wanted")
		}
	})
	bubble(t, "dropped", func(t *testing.T, b *bench) {
		b.ca.lifetime = 12 * time.Hour
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		b.demand()
		b.settle(2 * day)
		if b.ca.total(orders) != 1 || b.count(store.KindIssued) != 1 || b.count(store.KindWanted) != 1 {
			t.Errorf("%d orders, %d issued, %d wanted", b.ca.total(orders), b.count(store.KindIssued), b.count(store.KindWanted))
		}
		if r := b.ask(store.RequestRenew, "shop", store.Spec{}); r.Error != "renew shop: nobody asks for it any more; add it to SPOACME_CERTS, or issue it" {
			t.Error(r.Error)
		}
	})
}

// What can't be read is left alone and holds nobody else up.
func TestUnreadable(t *testing.T) {
	for _, kind := range []store.Kind{store.KindWanted, store.KindIssued, store.KindOrder, store.KindAttempt, store.KindChallenges,
		store.KindBudget, store.KindDemand} {
		bubble(t, string(kind), func(t *testing.T, b *bench) {
			key := store.Key{Kind: kind, Name: "shop"}
			b.store.Edit(key, []byte(`{"v":7,`))
			b.demand("shop=shop.example.com", "blog=blog.example.com")
			b.start()
			b.settle(10 * time.Second)
			if read[*store.Certificate](b, store.KindIssued, "blog") == nil {
				t.Error("the other certificate was held up")
			}
			if string(b.store.Raw(key)) != `{"v":7,` {
				t.Error("it was not left alone")
			}
			if n := b.ca.issued()["shop.example.com"]; n > 1 {
				t.Errorf("%d certificates", n)
			}
			if n := b.ca.total(requests); n > 100 {
				t.Errorf("%d requests to the CA", n)
			}
			if !strings.Contains(b.log.String(), "shop") {
				t.Error("nothing is said")
			}
		})
	}
}
