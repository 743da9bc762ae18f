package store

import (
	"context"
	"fmt"
)

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

// EncodeFacts writes what DropPEM leaves of a record. It is for this machine only: DecodeFacts reads it, Decode need not.
func EncodeFacts(r Record) ([]byte, error) {
	c := r.clone()
	DropPEM(c)
	b, err := marshal(c, c.header().unknown)
	if err != nil {
		return nil, fmt.Errorf("encode the facts of %s: %w", r.Key(), err)
	}
	return b, nil
}

// DecodeFacts reads what EncodeFacts wrote.
func DecodeFacts(key Key, b []byte) (Record, error) {
	r := newRecord(key.Kind)
	if r == nil {
		return nil, fmt.Errorf("decode the facts of %s: unknown kind", key)
	}
	unknown, err := unmarshal(b, r)
	if err == nil && r.Key() != key {
		err = fmt.Errorf("it says that it is %.200q", r.Key())
	}
	if err != nil {
		return nil, fmt.Errorf("decode the facts of %s: %w", key, err)
	}
	r.header().unknown = unknown
	return r, nil
}
