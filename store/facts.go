package store

import "context"

// ListFacts is List without chains and private keys, for callers that keep an index of what there is. A store that has the method
// ListFacts never holds all of them at once: with 10,000 certificates they are most of a listing.
func ListFacts(ctx context.Context, s Store, kind Kind) (Listing, error) {
	type lister interface {
		ListFacts(ctx context.Context, kind Kind) (Listing, error)
	}
	if l, ok := s.(lister); ok {
		return l.ListFacts(ctx, kind)
	}
	list, err := s.List(ctx, kind)
	for _, e := range list.Entries {
		DropPEM(e.Record)
	}
	return list, err
}

// DropPEM takes chain and private key out of a certificate or an order. What is left must not be stored.
func DropPEM(r Record) {
	switch r := r.(type) {
	case *Certificate:
		r.Chain, r.Private = "", Secret{}
	case *Order:
		r.Private = Secret{}
	}
}
