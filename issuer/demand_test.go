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
		if n := b.count(store.KindRequest); n != 1 {
			t.Errorf("%d requests are kept, want the removal alone", n)
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

// merging is an index with the demand of nodes, and a clock.
type merging struct {
	*index
	now  time.Time
	live *presence
}

func newMerging(live ...string) *merging {
	m := &merging{index: newIndex(), now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), live: &presence{known: true, live: map[string]bool{}}}
	for _, n := range live {
		m.live.live[n] = true
	}
	return m
}

// ask is a node's new haproxy.cfg.
func (m *merging) ask(node string, domains ...string) {
	d := &store.Demand{Node: node, Certificates: map[string]store.Spec{"shop": spec(domains...)}, Since: m.now, Seen: m.now}
	m.demands[node] = d
	m.note(d, m.now)
}

// pass merges, and returns what is wanted then. With issue, what is not in the certificate is ordered.
func (m *merging) pass(d time.Duration) string {
	m.now = m.now.Add(d)
	changed, _ := m.merge(m.now, m.live)
	for _, w := range changed {
		m.wanted[w.Name] = w
	}
	w := m.wanted["shop"]
	return fmt.Sprint(w.Sources, " ", slices.Sorted(slices.Values(w.Spec.Domains)))
}

// order makes a certificate if one is due, and reports whether.
func (m *merging) order() bool {
	w, have := m.wanted["shop"], m.issued["shop"]
	if have != nil && covers(have.domains, w.Spec.Domains) {
		return false
	}
	m.issued["shop"] = &facts{domains: w.Spec.Domains, issuedAt: m.now, notBefore: m.now, notAfter: m.now.Add(90 * day), renewAt: m.now.Add(60 * day)}
	return true
}

// What a node that comes, goes or changes its mind every minute for ten days costs in orders.
func TestOrdersOfAFlappingNode(t *testing.T) {
	for name, flap := range map[string]func(m *merging, i int){
		"comes and goes": func(m *merging, i int) {
			if i == 0 {
				m.ask("b", "a.example", "b.example")
			}
			m.live.live["b"] = i%2 == 0
		},
		"changes its mind and goes": func(m *merging, i int) {
			m.ask("b", "a.example", fmt.Sprintf("b%d.example", i))
			m.live.live["b"] = false
		},
		"asks for more and less": func(m *merging, i int) { m.ask("b", [][]string{{"a.example"}, {"a.example", "b.example"}}[i%2]...) },
		"alone changes its mind": func(m *merging, i int) {
			delete(m.demands, "a")
			m.ask("b", [][]string{{"a.example"}, {"b.example"}}[i%2]...)
		},
		"all change their minds": func(m *merging, i int) {
			for _, n := range []string{"a", "b"} {
				m.ask(n, [][]string{{"a.example"}, {"b.example"}}[i%2]...)
			}
		},
	} {
		m := newMerging("a", "b")
		m.ask("a", "a.example")
		orders := 0
		for i := range 10 * 24 * 60 {
			flap(m, i)
			m.pass(time.Minute)
			if m.order() {
				orders++
			}
		}
		if orders > 2 {
			t.Errorf("%s: %d orders", name, orders)
		}
	}
}

func TestMergeOfFleet(t *testing.T) {
	m := newMerging("a", "b", "c")
	for _, n := range []string{"a", "b", "c"} {
		m.ask(n, "a.example")
	}
	for i, step := range []struct {
		do   func()
		wait time.Duration
		want string
	}{
		{func() {}, 0, "[a b c] [a.example]"},
		{func() { m.ask("a", "a.example", "b.example") }, time.Minute, "[a b c] [a.example]"}, // rolled out one by one
		{func() { m.ask("b", "a.example", "b.example") }, time.Minute, "[a b c] [a.example]"},
		{func() { m.live.live["c"] = false }, time.Minute, "[a b c] [a.example b.example]"}, // all live ones agree
		{func() { m.ask("a", "b.example") }, time.Minute, "[a b c] [a.example b.example]"},
		{func() { m.ask("b", "b.example") }, 0, "[a b c] [a.example b.example]"}, // one that is gone still asks for it
		{func() { m.demands["a"].Seen, m.demands["b"].Seen = m.now.Add(8*day), m.now.Add(8*day) }, 7 * day, "[a b c] [a.example b.example]"},
		{func() {}, 7 * time.Hour, "[a b] [b.example]"},                          // and does not any more after seven days
		{func() { m.live.live["c"] = true }, 0, "[a b c] [a.example b.example]"}, // until it is back
		{func() { m.ask("c", "b.example", "c.example") }, 9 * time.Minute, "[a b c] [a.example b.example]"},
		{func() {}, time.Minute, "[a b c] [b.example c.example]"},
		{func() { m.live = &presence{} }, time.Hour, "[a b c] [b.example c.example]"},
	} {
		step.do()
		if got := m.pass(step.wait); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}

// A clock that is wrong on a node makes a change neither sooner nor much later.
func TestMergeWithWrongClocks(t *testing.T) {
	for _, off := range []time.Duration{-2 * day, 2 * day} {
		m := newMerging("a", "b")
		m.ask("a", "a.example")
		m.ask("b", "a.example")
		m.pass(0)
		m.now = m.now.Add(time.Hour)
		d := &store.Demand{Node: "b", Certificates: map[string]store.Spec{"shop": spec("a.example", "b.example")}, Since: m.now.Add(off)}
		m.demands["b"] = d
		m.note(d, m.now)
		if got := m.pass(9 * time.Minute); got != "[a b] [a.example]" {
			t.Errorf("%s: %s after 9 minutes", off, got)
		}
		if got := m.pass(time.Minute); got != "[a b] [a.example b.example]" {
			t.Errorf("%s: %s after 10 minutes", off, got)
		}
	}
}

func TestMergeNotes(t *testing.T) {
	m := newMerging("a", "b")
	m.ask("a", many("a", 60)...)
	m.now = m.now.Add(time.Minute)
	m.ask("b", many("b", 60)...)
	m.pass(0)
	if got := m.wanted["shop"].Note; got != "what the nodes ask for does not go into one certificate: that of b, which is newest, is used" {
		t.Error(got)
	}
	m.demands["a"].Certificates["shop"] = spec("b0.example")
	m.demands["b"].Certificates["shop"] = store.Spec{Domains: []string{"b0.example"}, KeyType: "rsa2048"}
	m.pass(time.Hour)
	if w := m.wanted["shop"]; w.Note != "b and a ask for different options: those of b, which are newer, are used" || w.Spec.KeyType != "rsa2048" {
		t.Errorf("%+v", w)
	}
	m.ask("a", "c.example")
	m.pass(time.Minute)
	if got := m.wanted["shop"].Note; !strings.Contains(got, "the nodes ask for different names: a change is ordered when they agree or have stood still") {
		t.Error(got)
	}
}
