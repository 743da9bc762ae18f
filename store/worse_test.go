package store_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func days(n float64) time.Time { return now.Add(time.Duration(n * 24 * float64(time.Hour))) }

func TestCheck(t *testing.T) {
	ca := storetest.NewCA(t, "Test CA")
	leaf := func(from, to time.Time, domains ...string) storetest.Leaf {
		return storetest.Leaf{NotBefore: from, NotAfter: to, Domains: domains}
	}
	good := leaf(days(-1), days(89), "a.example", "*.b.example")
	selfSigned, clientOnly := good, good
	selfSigned.SelfSigned = true
	clientOnly.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	alone := newParts(t, good)
	leafOnly, err := store.ParseBundle([]byte(alone.leaf + alone.key))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b       *store.Bundle
		domains []string
		want    string
	}{
		"good":                {ca.Bundle(good), []string{"a.example", "*.b.example"}, ""},
		"by wildcard":         {ca.Bundle(good), []string{"A.example", "x.b.example"}, ""},
		"no names asked":      {ca.Bundle(good), nil, ""},
		"other names":         {ca.Bundle(good), []string{"a.example", "b.example", "x.y.b.example"}, "it does not hold b.example, x.y.b.example"},
		"wildcard not there":  {ca.Bundle(good), []string{"*.a.example"}, "it does not hold *.a.example"},
		"expired":             {ca.Bundle(leaf(days(-90), days(0), "a.example")), nil, "it expired at 2026-06-01 12:00:00 UTC"},
		"not yet valid":       {ca.Bundle(leaf(now.Add(61*time.Second), days(9), "a.example")), nil, "it is not valid before 2026-06-01 12:01:01 UTC"},
		"CA's clock is ahead": {ca.Bundle(leaf(now.Add(time.Minute), days(9), "a.example")), nil, ""},
		"self-signed":         {ca.Bundle(selfSigned), nil, "it is self-signed: a placeholder"},
		"for clients":         {ca.Bundle(clientOnly), nil, "it is not for TLS servers"},
		"leaf only":           {leafOnly, nil, "the chain is incomplete: the issuer's certificate is missing"},
	} {
		if got := text(c.b.Check(now, c.domains)); got != prefix("check certificate: ", c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func prefix(p, s string) string {
	if s == "" {
		return ""
	}
	return p + s
}

func TestWorse(t *testing.T) {
	ca, otherCA := storetest.NewCA(t, "Test CA"), storetest.NewCA(t, "Other CA")
	type leaf struct {
		from, to float64
		names    string
		ca       *storetest.CA
		self     bool
	}
	bundle := func(l leaf) *store.Bundle {
		if l.ca == nil {
			l.ca = ca
		}
		if l.names == "" {
			l.names = "a.example"
		}
		domains := []string{l.names}
		if l.names == "a+b" {
			domains = []string{"a.example", "b.example"}
		}
		return l.ca.Bundle(storetest.Leaf{NotBefore: days(l.from), NotAfter: days(l.to), Domains: domains, SelfSigned: l.self})
	}
	const older = "keep the old certificate: the other one is older: valid 2026-05-"
	for name, c := range map[string]struct {
		b, old leaf
		want   string // how the error begins
	}{
		"renewal":                      {b: leaf{from: -1, to: 89}, old: leaf{from: -60, to: 30}},
		"rollback":                     {b: leaf{from: -30, to: 60}, old: leaf{from: -1, to: 89}, want: older},
		"rollback by a second":         {b: leaf{from: -1 - 1./86400, to: 89}, old: leaf{from: -1, to: 89}, want: older},
		"same second":                  {b: leaf{from: -1, to: 89}, old: leaf{from: -1, to: 89}},
		"same second, shorter":         {b: leaf{from: -1, to: 6}, old: leaf{from: -1, to: 89}, want: older},
		"shorter profile":              {b: leaf{from: -1, to: 5}, old: leaf{from: -2, to: 88}},
		"back to the longer profile":   {b: leaf{from: -2, to: 88}, old: leaf{from: -1, to: 5}, want: older},
		"a name more":                  {b: leaf{from: -1, to: 89, names: "a+b"}, old: leaf{from: -2, to: 88}},
		"a name fewer":                 {b: leaf{from: -1, to: 89}, old: leaf{from: -2, to: 88, names: "a+b"}},
		"all names changed":            {b: leaf{from: -1, to: 89}, old: leaf{from: -2, to: 88, names: "c.example"}},
		"a name more, but older":       {b: leaf{from: -2, to: 88, names: "a+b"}, old: leaf{from: -1, to: 89}, want: older},
		"other CA, dates from 0:00":    {b: leaf{from: -1.5, to: 88.5, ca: otherCA}, old: leaf{from: -1, to: 89}},
		"other CA, the same, one gone": {b: leaf{from: -1.5, to: 88.5, ca: otherCA}, old: leaf{from: -1, to: 89, names: "a+b"}, want: older},
		"other CA, older":              {b: leaf{from: -2.1, to: 88.5, ca: otherCA}, old: leaf{from: -1, to: 89}, want: older},
		"other CA, ends earlier":       {b: leaf{from: -1.5, to: 60, ca: otherCA}, old: leaf{from: -1, to: 89}, want: older},
		"old one expired":              {b: leaf{from: -30, to: 60}, old: leaf{from: -7, to: -1}},
		"old one not yet valid":        {b: leaf{from: -30, to: 60}, old: leaf{from: 1, to: 89}},
		"old one is a placeholder":     {b: leaf{from: -30, to: 60}, old: leaf{from: -1, to: 3650, self: true}},
		"placeholder":                  {b: leaf{from: -1, to: 3650, self: true}, old: leaf{from: -30, to: 60}, want: "keep the old certificate: the new one is worse: it is self-signed"},
		"expired":                      {b: leaf{from: -30, to: -1}, old: leaf{from: -60, to: -2}, want: "keep the old certificate: the new one is worse: it expired at"},
		"not yet valid":                {b: leaf{from: 1, to: 89}, old: leaf{from: -60, to: 2}, want: "keep the old certificate: the new one is worse: it is not valid before"},
	} {
		got := text(bundle(c.b).Worse(bundle(c.old), now))
		if len(got) < len(c.want) || got[:len(c.want)] != c.want || c.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if err := bundle(leaf{from: -1, to: 89}).Worse(nil, now); err != nil {
		t.Errorf("nothing there: %v", err)
	}
}

func TestWorseBoth(t *testing.T) {
	p := newParts(t, storetest.Leaf{NotBefore: days(-1), NotAfter: days(89)})
	whole, err := store.ParseBundle([]byte(p.key + p.leaf + p.intermediate))
	if err != nil {
		t.Fatal(err)
	}
	leafOnly, err := store.ParseBundle([]byte(p.key + p.leaf))
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Worse(leafOnly, now); err != nil {
		t.Errorf("completing the chain: %v", err)
	}
	if err := leafOnly.Worse(whole, now); err == nil {
		t.Error("the chain was lost")
	}
	if err := whole.Worse(whole, now); err != nil {
		t.Errorf("itself: %v", err)
	}
}
