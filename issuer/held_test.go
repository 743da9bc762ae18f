package issuer

import (
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// What holds an order back is named, with its end, when it holds it back at every CA.
func TestHeld(t *testing.T) {
	const le, other = "https://acme-v02.api.letsencrypt.org/directory", "https://ca.example/directory"
	now := time.Now()
	names := []string{"shop.example.com"}
	often := &store.Certificate{Domains: names, IssuedAt: now.Add(-time.Hour), Before: []time.Time{now.Add(-4 * time.Hour), now.Add(-3 * time.Hour), now.Add(-2 * time.Hour)}}
	full, closed := &store.Budget{}, &store.Budget{Until: now.Add(time.Hour), Error: "too many"}
	for range ordersAtPublic {
		full.Orders = append(full.Orders, now.Add(-time.Hour))
	}
	for name, c := range map[string]struct {
		cas   []string
		spec  store.Spec
		have  *store.Certificate
		le    *store.Budget
		until time.Time
		why   string
	}{
		"nothing":                    {cas: []string{le}},
		"the CA's demand":            {cas: []string{le}, le: closed, until: closed.Until, why: "which the CA demands (ca-acme-v02-api-letsencrypt-org-"},
		"with what it says":          {cas: []string{le}, le: closed, until: closed.Until, why: "): too many"},
		"orders":                     {cas: []string{le}, le: full, until: now.Add(2 * time.Hour), why: "limit on new orders"},
		"the same names":             {cas: []string{le}, have: often, until: now.Add(week - 4*time.Hour), why: "limit on certificates for the same names"},
		"other names":                {cas: []string{le}, spec: store.Spec{Domains: []string{"a.example.com"}}, have: often},
		"another CA is open":         {cas: []string{le, other}, le: full},
		"but not for this":           {cas: []string{other}, spec: store.Spec{CA: le}, le: full, until: now.Add(2 * time.Hour), why: "limit on new orders"},
		"a CA without a known limit": {cas: []string{other}, have: often},
	} {
		t.Run(name, func(t *testing.T) {
			var s Settings
			for _, dir := range c.cas {
				s.CAs = append(s.CAs, CA{Directory: dir})
			}
			i, err := New(Config{Store: storetest.NewMemory(), Settings: s})
			if err != nil {
				t.Fatal(err)
			}
			if c.spec.Domains == nil {
				c.spec.Domains = names
			}
			until, why := i.Held(&store.Wanted{Spec: c.spec}, c.have, map[string]*store.Budget{CAID(le): c.le}, now)
			if !until.Equal(c.until) || !c.until.IsZero() && !strings.Contains(why, c.why) {
				t.Errorf("until %v (%s), want %v (%s)", until, why, c.until, c.why)
			}
		})
	}
}
