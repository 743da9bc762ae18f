package status

import (
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// TestFleet: of three nodes and an issuer, one serves something else, one is gone.
func TestFleet(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	cert := &store.Certificate{Name: "shop", Domains: []string{"shop.example.com"}, Fingerprint: "AA", Serial: "1", Issuer: "CA",
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(48 * time.Hour)}
	v := Build(Input{
		Now: now, Node: "lb1", HAProxy: HAProxy{Version: "3.2", PID: 1, Reachable: true},
		Wanted:  []*store.Wanted{{Name: "shop", Spec: store.Spec{Domains: cert.Domains}, Sources: []string{"lb1"}}},
		Issued:  []*store.Certificate{cert},
		Foreign: []*store.Certificate{{Name: "old", Fingerprint: "BB", NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}},
		Served:  map[string]Served{"shop": {Fingerprint: "AA"}, "old": {Fingerprint: "BB"}},
		Fleet: []Node{
			{Name: "issuer1", Role: "issuer", Live: true, Leads: true},
			{Name: "lb1", Role: "node", Live: true},
			{Name: "lb2", Role: "edge", Live: true, Behind: true,
				Differs: []Difference{{Certificate: "shop", Fingerprint: "CC", Cause: "its HAProxy does not answer", Since: now.Add(-time.Minute)}}},
			{Name: "lb3"},
		},
	})
	shop, _ := v.Certificate("shop")
	if got := shop.Nodes.String(); got != "1/2" {
		t.Errorf("shop is served on %s nodes, want 1/2", got)
	}
	if old, _ := v.Certificate("old"); old.State != Foreign {
		t.Errorf("old is %s", old.State)
	}
	var b strings.Builder
	if err := Table(&b, v); err != nil {
		t.Fatal(err)
	}
	want := `
NODE     ROLE    STATE                                   DIFFERS
issuer1  issuer  leads                                   0
lb1      node    live                                    0
lb2      edge    live, catching up                       1
lb3      -       gone: ` + "`spoacme forget lb3`" + ` if for good  0

shop on lb2: its HAProxy does not answer (for 60s)
`
	if !strings.HasSuffix(b.String(), want) {
		t.Errorf("got\n%s\nwant at its end\n%s", b.String(), want)
	}
}

// TestHeadOfIssuer: that an issuer has no HAProxy is no trouble of its HAProxy.
func TestHeadOfIssuer(t *testing.T) {
	for role, want := range map[string]string{
		"issuer": "spoacme on boss, role issuer: no HAProxy: ready\n",
		"node":   "spoacme on boss, HAProxy not reachable: ready\n",
	} {
		var b strings.Builder
		if err := Table(&b, Build(Input{Now: time.Now(), Node: "boss", Role: role})); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(b.String(), want) {
			t.Errorf("%s: %q", role, b.String())
		}
	}
}
