package storetest

import (
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Records returns a valid record of every kind, each under the name given.
func Records(name string) []store.Record {
	at := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	spec := store.Spec{Domains: []string{"example.com", "www.example.com"}}
	const ca = "https://ca.example/directory"
	key := func() store.Secret { return store.NewSecret([]byte("not a key")) }
	return []store.Record{
		&store.Wanted{Name: name, Spec: spec, Generation: 1, Sources: []string{"node1"}},
		&store.Certificate{Name: name, Domains: spec.Domains, Chain: "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n",
			Private: key(), Serial: "abc", Fingerprint: strings.Repeat("0A", 20), Issuer: "Test CA",
			NotBefore: at, NotAfter: at.AddDate(0, 0, 90), CA: ca, Generation: 1, IssuedAt: at},
		&store.Order{Name: name, CA: ca, Account: "main", Spec: spec, Generation: 1, Private: key(), Started: at},
		&store.Attempt{Name: name, CA: ca, Failures: 1, Tried: at, Next: at.Add(time.Hour)},
		&store.Budget{CA: name, Orders: []time.Time{at}},
		&store.Account{ID: name, CA: ca, Private: key()},
		&store.Challenges{Name: name, Generation: 1, Thumbprint: strings.Repeat("t", 43), Tokens: []string{"one", "two"}},
		&store.Demand{Node: name, Certificates: map[string]store.Spec{"shop": spec}, Since: at},
		&store.Request{ID: name, Op: store.RequestIssue, Certificate: "shop", Spec: spec, Asked: at},
	}
}
