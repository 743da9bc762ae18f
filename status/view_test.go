package status

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

const (
	ours   = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	theirs = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"
)

// wanted, issued: a 90-day certificate with left days to go, renewed at 30.
func wanted(name string, domains ...string) *store.Wanted {
	if domains == nil {
		domains = []string{name + ".example.com"}
	}
	return &store.Wanted{Name: name, Spec: store.Spec{Domains: domains}, Generation: 1, Sources: []string{"edge1"}}
}

func issued(name string, left int) *store.Certificate {
	end := now.Add(time.Duration(left) * day)
	return &store.Certificate{
		Name: name, Domains: []string{name + ".example.com"}, Serial: "04e2a91b", Fingerprint: ours, Issuer: "E5",
		Chain: "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n", Private: store.NewSecret([]byte("hush")),
		NotBefore: end.Add(-90 * day), NotAfter: end, RenewAt: end.Add(-30 * day), IssuedAt: end.Add(-90 * day), Generation: 1,
	}
}

func one(change func(*Input)) Input {
	in := Input{
		Now: now, Node: "lb1", HAProxy: HAProxy{Version: "3.0.11", PID: 42, Reachable: true},
		Wanted: []*store.Wanted{wanted("shop")}, Issued: []*store.Certificate{issued("shop", 54)},
		Served: map[string]Served{"shop": {Fingerprint: ours, Since: now.Add(-36 * day)}},
	}
	change(&in)
	return in
}

func failedAttempt(at time.Time, text, domain string) *store.Attempt {
	return &store.Attempt{Name: "shop", Failures: 3, Tried: at, Next: now.Add(5 * time.Minute), Error: text, Domain: domain}
}

func TestStates(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*Input)
		state  State
		err    string
		next   string
		answer string
	}{
		{"all well", func(*Input) {}, OK, "", "renew in 24d", "ready up 60% #expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"due", func(in *Input) { in.Issued = []*store.Certificate{issued("shop", 29)} }, Renewing, "", "renew now",
			"ready up 32% #renewing, expires in 29d, serial 04e2a91b, 1/1 nodes\n"},
		{"order under way", func(in *Input) { in.Orders = []*store.Order{{Name: "shop"}} }, Renewing, "", "renew now",
			"ready up 60% #renewing, expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"names changed", func(in *Input) { in.Wanted[0].Generation = 2 }, Renewing, "", "renew now",
			"ready up 60% #renewing, expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"renewal asked", func(in *Input) { in.Wanted[0].RenewAsked = now }, Renewing, "", "renew now",
			"ready up 60% #renewing, expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"renewal asked and done", func(in *Input) { in.Wanted[0].RenewAsked = now.Add(-40 * day) }, OK, "", "renew in 24d",
			"ready up 60% #expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"failing", func(in *Input) {
			in.Issued = []*store.Certificate{issued("shop", 10)}
			in.Attempts = []*store.Attempt{failedAttempt(now.Add(-time.Hour), "403 unauthorized: check DNS", "www.shop.example.com")}
		}, Failing, "www.shop.example.com: 403 unauthorized: check DNS", "retry in 5m",
			"up drain 11% #renewal failing: expires in 10d, www.shop.example.com: 403 unauthorized: check DNS\n"},
		{"trying again", func(in *Input) {
			in.Issued = []*store.Certificate{issued("shop", 10)}
			in.Attempts = []*store.Attempt{failedAttempt(now, "", "")}
		}, Renewing, "", "renew now", "ready up 11% #renewing, expires in 10d, serial 04e2a91b, 1/1 nodes\n"},
		{"an attempt older than the certificate", func(in *Input) {
			in.Attempts = []*store.Attempt{failedAttempt(now.Add(-37*day), "old", "")}
		}, OK, "", "renew in 24d", "ready up 60% #expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"expired", func(in *Input) {
			in.Issued = []*store.Certificate{issued("shop", -3)}
			in.Attempts = []*store.Attempt{failedAttempt(now.Add(-time.Hour), "no route to the CA", "")}
		}, Expired, "no route to the CA", "retry in 5m", "down #expired 3d ago: no route to the CA\n"},
		{"first certificate", func(in *Input) { in.Issued, in.Served = nil, nil }, Missing, "", "issue now", "down #no certificate yet\n"},
		{"no first certificate", func(in *Input) {
			in.Issued, in.Served = nil, nil
			in.Attempts = []*store.Attempt{failedAttempt(now.Add(-time.Hour), "shop.example.com: NXDOMAIN", "shop.example.com")}
		}, Missing, "shop.example.com: NXDOMAIN", "retry in 5m", "down #no certificate yet: shop.example.com: NXDOMAIN\n"},
		{"another one served", func(in *Input) { in.Served["shop"] = Served{Fingerprint: theirs} }, Drift,
			"HAProxy serves another certificate (SHA-1 " + theirs + ") than the stored one (" + ours + "); see the sidecar's log, or run `spoacme check`",
			"renew in 24d", "down #not the one stored: HAProxy serves another certificate (SHA-1 " + strings.Repeat("B", 35) + "...\n"},
		{"not served", func(in *Input) { in.Served = nil }, Drift, "HAProxy does not serve it; see the sidecar's log, or run `spoacme check`",
			"renew in 24d", "down #not the one stored: HAProxy does not serve it; see the sidecar's log, or run `spoacme check`\n"},
		{"not served, and why", func(in *Input) { in.Served["shop"] = Served{Error: "too big; set tune.bufsize 32768"} }, Drift,
			"too big; set tune.bufsize 32768", "renew in 24d", "down #not the one stored: too big; set tune.bufsize 32768\n"},
		{"served, but not on disk", func(in *Input) { in.Served["shop"] = Served{Fingerprint: ours, Error: "disk full; make room"} }, OK,
			"disk full; make room", "renew in 24d", "ready up 60% #expires in 54d, serial 04e2a91b, 1/1 nodes\n"},
		{"HAProxy away", func(in *Input) { in.HAProxy, in.Served = HAProxy{}, nil }, OK, "", "renew in 24d",
			"ready up 60% #expires in 54d, serial 04e2a91b, 0/1 nodes\n"},
		{"dropped", func(in *Input) { in.Wanted = nil }, Unwanted, "", "-", "up drain 60% #no longer wanted, expires in 54d\n"},
		{"dropped by every node", func(in *Input) { in.Wanted[0].Sources = nil }, Unwanted, "", "-", "up drain 60% #no longer wanted, expires in 54d\n"},
		{"last minutes", func(in *Input) {
			c := issued("shop", 0)
			c.NotAfter = now.Add(90 * time.Second)
			in.Issued = []*store.Certificate{c}
		}, Renewing, "", "renew now", "ready up 1% #renewing, expires in 90s, serial 04e2a91b, 1/1 nodes\n"},
	} {
		v := Build(one(c.change))
		got, ok := v.Certificate("shop")
		if !ok || len(v.Certificates) != 1 {
			t.Fatalf("%s: %+v", c.what, v)
		}
		if got.State != c.state || got.Error != c.err || next(got, now) != c.next || rowOf(got, now).String() != c.answer {
			t.Errorf("%s:\n got %s %q %q %q\nwant %s %q %q %q", c.what, got.State, got.Error, next(got, now), rowOf(got, now), c.state, c.err, c.next, c.answer)
		}
	}
}

func TestBuild(t *testing.T) {
	in := one(func(in *Input) {
		in.Version = "1.0"
		in.Wanted = append(in.Wanted, wanted("aaa"))
		in.Attempts = []*store.Attempt{{Name: "gone", Error: "x", Failures: 1}}
		in.Orders = []*store.Order{{Name: "gone"}}
		in.Conditions = []Condition{{Name: "store", OK: true}, {Name: "agent", Message: "nobody\nlistens"}}
	})
	got := Build(in)
	c := in.Issued[0]
	want := View{
		Time: now, Node: "lb1", Version: "1.0", HAProxy: HAProxy{Version: "3.0.11", PID: 42, Reachable: true},
		Certificates: []CertificateView{
			{Name: "aaa", Domains: []string{"aaa.example.com"}, State: Missing, Nodes: Nodes{0, 1}},
			{
				Name: "shop", Domains: []string{"shop.example.com"}, State: OK, Percent: 60, RenewAt: c.RenewAt, Nodes: Nodes{1, 1},
				Stored: &Stored{ours, "04e2a91b", "E5", c.NotBefore, c.NotAfter},
				Served: &Served{Fingerprint: ours, Since: now.Add(-36 * day)},
			},
		},
		Conditions: []Condition{{Name: "store", OK: true}, {Name: "agent", Message: "nobody listens"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf(" got %+v\nwant %+v", got, want)
	}
	if got.Ready() {
		t.Error("ready")
	}
}

func TestSpanAndPercent(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h",
		2 * day: "2d", 54*day + 23*time.Hour: "54d", -3 * day: "3d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %s, want %s", d, got, want)
		}
	}
	for _, c := range []struct {
		from, to time.Duration
		want     int
	}{{-45 * day, 45 * day, 50}, {0, 90 * day, 100}, {time.Hour, 90 * day, 100}, {-90 * day, 0, 0}, {-90 * day, time.Second, 1}, {-90 * day, -day, 0}, {0, 0, 0}} {
		if got := percent(now, now.Add(c.from), now.Add(c.to)); got != c.want {
			t.Errorf("%v: %d", c, got)
		}
	}
}

func TestClean(t *testing.T) {
	key := "x -----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIJ" + strings.Repeat("A", 64) + "\n-----END EC PRIVATE KEY-----"
	for in, want := range map[string]string{
		"a\r\n\tb\x1b[31m": "a b[31m", "\u202eevil\u2066": "evil", "a\xffb": "a?b", key: "x [hidden]",
		"got " + strings.Repeat("Qk1", 30) + " here":                "got [hidden] here",
		"see https://ca.example/" + strings.Repeat("Qk1", 24) + ".": "see https://ca.example/" + strings.Repeat("Qk1", 24) + ".", strings.Repeat("é ", 40): strings.Repeat("é ", 32) + "…",
	} {
		if got := clean(in, 100); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := plain("a…<b>&\"é" + strings.Repeat(" x", 100)); got != "a.'b'''' x"+strings.Repeat(" x", 43)+" ..." || len(got) > maxAnswer {
		t.Errorf("%q %d", got, len(got))
	}
}
