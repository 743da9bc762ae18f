package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// A certificate with another one's key can be read and not be served: that is known from when it changes, also over listings,
// which have no keys, until it is mended; what was known of it before stays.
func TestUnusableCertificate(t *testing.T) {
	st := storetest.NewMemory()
	lease, err := st.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ca := storetest.NewCA(t, "CA")
	record := func(of, key *store.Bundle) *store.Certificate {
		c := storetest.Records("shop")[1].(*store.Certificate)
		c.Chain, c.Private, c.Fingerprint = string(of.Chain()), store.NewSecret(key.Key()), of.Fingerprint
		return c
	}
	good, other := ca.Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}}), ca.Bundle(storetest.Leaf{Domains: []string{"other.example.com"}})
	c := newCatalog(st, "node", slog.New(slog.DiscardHandler), func([]string) {})
	key := store.Key{Kind: store.KindIssued, Name: "shop"}
	apply := func(keys []store.Key, r *store.Certificate) {
		t.Helper()
		if err := errors.Join(st.Commit(t.Context(), lease, nil, []store.Op{store.Put(r)}), c.apply(context.Background(), keys)); err != nil {
			t.Fatal(err)
		}
	}
	apply(nil, record(good, good))
	for i, step := range []struct {
		r      *store.Certificate
		keys   []store.Key
		broken bool
	}{
		{record(good, good), nil, false},
		{record(other, good), []store.Key{key}, true},
		{record(other, good), nil, true},
		{record(other, good), nil, true},
		{record(good, good), nil, false},
		{record(other, good), []store.Key{key}, true},
		{record(good, good), []store.Key{key}, false},
	} {
		apply(step.keys, step.r)
		_, bad := c.state()
		said := slices.ContainsFunc(bad, func(err error) bool { return errors.Is(err, store.ErrUnreadable) })
		if said != step.broken || c.unusable("shop") != step.broken || c.issued("shop").Fingerprint != good.Fingerprint {
			t.Errorf("step %d: %v, %s", i, bad, c.issued("shop").Fingerprint)
		}
	}
}
