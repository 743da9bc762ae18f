package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"shop", "_", "a.b-c_D9", strings.Repeat("a", 64), "1"} {
		if err := store.ValidName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "a..b", "-a", ".a", "a/b", "a b", "ä", "a\n", "a\x00", "*", strings.Repeat("a", 65)} {
		want := fmt.Sprintf("name %q: use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'", name)
		if err := store.ValidName(name); text(err) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestValidToken(t *testing.T) {
	for token, want := range map[string]bool{
		"a": true, "-_9Z": true, strings.Repeat("t", 128): true,
		"": false, strings.Repeat("t", 129): false, "a.b": false, "a/b": false, "a\n": false, "a=": false, "%41": false, "ä": false,
	} {
		if store.ValidToken(token) != want {
			t.Errorf("%q: not %v", token, want)
		}
	}
}

func TestValidDomain(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := strings.Join([]string{label, label, label, label}, ".") // 255
	for _, d := range []string{"example.com", "*.example.com", "a", "1and1.de", "xn--bcher-kva.example", "a--b.c", label + ".c", long[2:]} {
		if err := store.ValidDomain(d); err != nil {
			t.Error(err)
		}
	}
	const letters = "use only letters, digits, '-' and '.'; write international names as xn--…"
	for d, want := range map[string]string{
		"":                    "domain is empty",
		"*":                   `domain "*": a wildcard needs a domain, as in *.example.com`,
		"a.example.":          `domain "a.example.": two dots in a row, or a dot at an end`,
		".a.example":          `domain ".a.example": two dots in a row, or a dot at an end`,
		"A.example":           `domain "A.example": use lower case`,
		"*.*.example":         `domain "*.*.example": '*' can only be the whole first part`,
		"*foo.example":        `domain "*foo.example": '*' can only be the whole first part`,
		"a.*.example":         `domain "a.*.example": '*' can only be the whole first part`,
		"-a.example":          `domain "-a.example": a part can't begin or end with '-'`,
		"a_b.example":         `domain "a_b.example": ` + letters,
		"bücher.example":      `domain "bücher.example": ` + letters,
		"https://a.example":   `domain "https://a.example": ` + letters,
		"a.example:443":       `domain "a.example:443": ` + letters,
		"a b":                 `domain "a b": ` + letters,
		"192.0.2.1":           `domain "192.0.2.1": an IP address is not a domain`,
		label + "a.example":   `domain "` + label + `a.example": a part of 64 characters, the limit is 63`,
		long[1:]:              `domain "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"…: 254 characters, the limit is 253`,
		"a.example,b.example": `domain "a.example,b.example": ` + letters,
	} {
		if err := store.ValidDomain(d); text(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestValidSpec(t *testing.T) {
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example", i)
	}
	one := []string{"a.example"}
	for want, specs := range map[string][]store.Spec{
		"": {{Domains: one}, {Domains: many[:100]}, {Domains: one, KeyType: "ec256+rsa2048", CA: "https://ca.example/d?x=1"},
			{Domains: []string{"*.a.example"}, Challenge: "dns-01", DNS: "route53", Profile: "shortlived"},
			{Domains: one, CA: "http://127.0.0.1:4000/d"}},
		"no domain":                                 {{}},
		"101 domains, the limit is 100":             {{Domains: many}},
		`domain "a.example" is there twice`:         {{Domains: []string{"a.example", "b.example", "a.example"}}},
		`domain "A": use lower case`:                {{Domains: []string{"A"}}},
		`challenge "tls-01": use http-01 or dns-01`: {{Domains: one, Challenge: "tls-01"}},
		`domain "*.a": a wildcard needs challenge=dns-01`: {
			{Domains: []string{"*.a"}}, {Domains: []string{"b", "*.a"}, Challenge: "http-01"}},
		"dns=x is only for challenge=dns-01":                                                         {{Domains: one, DNS: "x"}},
		"challenge=dns-01 needs the name of a DNS provider, as in dns=route53":                       {{Domains: one, Challenge: "dns-01"}},
		`profile "a b": use letters, digits, '.', '_' and '-'`:                                       {{Domains: one, Profile: "a b"}},
		`key "rsa": use ec256, ec384, rsa2048, rsa3072, rsa4096, or one of each as in ec256+rsa2048`: {{Domains: one, KeyType: "rsa"}},
		`key "ec256+ec384": use ec256, ec384, rsa2048, rsa3072, rsa4096, or one of each as in ec256+rsa2048`: {
			{Domains: one, KeyType: "ec256+ec384"}},
		`ca "letsencrypt": use a URL that begins with https://`:       {{Domains: one, CA: "letsencrypt"}},
		`ca "http://ca.example": use a URL that begins with https://`: {{Domains: one, CA: "http://ca.example"}},
		`ca "…": use a URL that begins with https://`:                 {{Domains: one, CA: "https://u:p@c"}},
	} {
		for _, s := range specs {
			if err := s.Validate(); text(err) != want {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
}

// broken takes the valid record of a type and breaks it.
func broken[R store.Record](breakIt func(R)) store.Record {
	for _, r := range storetest.Records("shop") {
		if r, ok := r.(R); ok {
			breakIt(r)
			return r
		}
	}
	panic("no such record")
}

func TestValidRecords(t *testing.T) {
	const pemKey = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	var none store.Secret
	for _, c := range []struct {
		r    store.Record
		want string
	}{
		{broken(func(r *store.Wanted) { r.Spec.Domains = nil }), "no domain"},
		{broken(func(r *store.Wanted) { r.Name = "../x" }), "name \"../x\": use 1 to 64"},
		{broken(func(r *store.Wanted) { r.Sources = []string{"a b"} }), "sources: name \"a b\": use"},
		{broken(func(r *store.Wanted) { r.RenewAsked = time.Unix(0, 0) }), "renew_asked is in the year 1970"},
		{broken(func(r *store.Certificate) { r.Chain = "x" }), "chain is not PEM that begins with the leaf"},
		{broken(func(r *store.Certificate) { r.Chain += pemKey }), "chain holds a private key"},
		{broken(func(r *store.Certificate) { r.Private = none }), "private is missing"},
		{broken(func(r *store.Certificate) { r.Serial = "0A" }), "serial is not lower-case hex without leading zeros"},
		{broken(func(r *store.Certificate) { r.Fingerprint = "ab" }), "fingerprint is not 40 digits of upper-case hex"},
		{broken(func(r *store.Certificate) { r.NotAfter = r.NotBefore }), "not_after is not later than not_before"},
		{broken(func(r *store.Certificate) { r.NotBefore = time.Time{} }), "not_before is missing"},
		{broken(func(r *store.Certificate) { r.IssuedAt = time.Time{} }), "issued_at is missing"},
		{broken(func(r *store.Certificate) { r.NotAfter = r.NotAfter.AddDate(5000, 0, 0) }), "not_after is in the year 7026"},
		{broken(func(r *store.Certificate) { r.Before = []time.Time{{}} }), "before is missing"},
		{broken(func(r *store.Certificate) { r.URL = "ftp://x" }), `url "ftp://x": use a URL`},
		{broken(func(r *store.Order) { r.CA = "" }), `ca "": use a URL that begins with https://`},
		{broken(func(r *store.Order) { r.Account = "" }), `name "": use 1 to 64`},
		{broken(func(r *store.Order) { r.Private = none }), "private is missing"},
		{broken(func(r *store.Order) { r.Started = time.Time{} }), "started is missing"},
		{broken(func(r *store.Order) { r.Finalized = true }), "finalized, but url is missing"},
		{broken(func(r *store.Attempt) { r.Failures = -1 }), "failures is -1"},
		{broken(func(r *store.Attempt) { r.CutShort = -1 }), "cut_short is -1"},
		{broken(func(r *store.Attempt) { r.Error = strings.Repeat("x", 8193) }), "error: 8193 characters, the limit is 8192"},
		{broken(func(r *store.Attempt) { r.Error = pemKey }), "error holds a private key"},
		{broken(func(r *store.Budget) { r.CA = "https://x" }), `name "https://x": use`},
		{broken(func(r *store.Account) { r.Private = none }), "private is missing"},
		{broken(func(r *store.Challenges) { r.Generation = 0 }), "generation is missing"},
		{broken(func(r *store.Challenges) { r.Thumbprint = "x" }), "thumbprint is not base64url of 32 bytes"},
		{broken(func(r *store.Challenges) { r.Tokens = []string{"a", "../x"} }), "token 2 is not 1 to 128 characters of base64url"},
		{broken(func(r *store.Challenges) { r.Tokens = []string{"a", "a"} }), "token 2 is there twice"},
		{broken(func(r *store.Challenges) { r.Tokens = make([]string, 101) }), "101 tokens, the limit is 100"},
		{broken(func(r *store.Demand) { r.Since = time.Time{} }), "since is missing"},
		{broken(func(r *store.Demand) { r.Certificates = map[string]store.Spec{"x": {}} }), `certificate "x": no domain`},
		{broken(func(r *store.Request) { r.Op = "dance" }), `op "dance": use issue, renew or remove`},
		{broken(func(r *store.Request) { r.Spec.Domains = nil }), "no domain"},
		{broken(func(r *store.Request) { r.Certificate = "" }), `name "": use`},
	} {
		if got := text(c.r.Validate()); !strings.HasPrefix(got, c.want) || got == "" {
			t.Errorf("%T: %q, want %q", c.r, got, c.want)
		}
	}
	for _, r := range storetest.Records("shop") {
		if err := r.Validate(); err != nil {
			t.Errorf("%T: %v", r, err)
		}
	}
}
