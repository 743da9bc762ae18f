package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Of a certificate that is to be taken back it must be known that it is of a configured CA. Its record says so, where there is one;
// an ACME directory names no roots, so a chain does not. Without a record it must be from the issuer of what is stored, or
// from one that a configured CA is known to have issued from. What somebody has put into a node's folder by hand, of the company's
// own CA for example, stays that node's affair.
//
// After a total loss nothing is known: no certificate is stored and none is in this process's copy. Then what the nodes serve is
// all there is, and to order thousands of certificates again that are good would be worse than to take one that is of
// another CA until it is renewed. So one of unknown origin is taken, but only in answer to a question, only for a wanted name in
// place of an order, with all its names, and only when all nodes have it from one issuer. Where they differ, it is ordered.

// errForeign means that a certificate is not known to be of a configured CA.
var errForeign = errors.New("no configured CA is known to have issued it")

// trust decides on the origin of a certificate. One that is taken for want of anything better is noted in unsure.
func (r *rescue) trust(c *store.Certificate, b *store.Bundle) error {
	if c.CA != "" {
		if !r.configured(c.CA) {
			return fmt.Errorf("it is of %s, which is not a configured CA", c.CA)
		}
		r.known = append(r.known, b)
		return nil
	}
	if slices.ContainsFunc(r.known, b.SameIssuer) {
		return nil
	}
	if len(r.known) > 0 || !r.asked || r.wanted == nil || b.Check(r.now, r.wanted.Spec.Domains) != nil {
		return errForeign
	}
	r.unsure = append(r.unsure, b)
	return nil
}

// configured reports whether a CA is one that certificates may be of.
func (r *rescue) configured(directory string) bool {
	return slices.ContainsFunc(r.cas, func(ca CA) bool { return ca.Directory == directory }) ||
		r.wanted != nil && r.wanted.Spec.CA == directory
}

// sure reports whether the origin of the best is known.
func (r *rescue) sure() bool {
	return !slices.ContainsFunc(r.unsure, func(b *store.Bundle) bool { return b.Fingerprint == r.held.Fingerprint })
}

// mixed reports whether nodes have the certificate from several issuers, with none of them known.
func (r *rescue) mixed() bool {
	return len(r.unsure) > 0 && slices.ContainsFunc(r.unsure, func(b *store.Bundle) bool { return !b.SameIssuer(r.unsure[0]) })
}

// issuersKept is for how long what is known of issuers is not read anew: hundreds of certificates may be looked for at once.
const issuersKept = 10 * time.Second

// issuersOf returns one certificate of each issuer that the configured CAs are known to have issued from, read once however many ask for it.
func (t *term) issuersOf(configured func(directory string) bool) ([]*store.Bundle, error) {
	known, err, _ := t.looking.Do("", func() (any, error) {
		t.issuersMu.Lock()
		known, at := t.issuers, t.issuersAt
		t.issuersMu.Unlock()
		if time.Since(at) < issuersKept {
			return known, nil
		}
		known, err := t.readIssuers(t.ctx, configured)
		if err != nil {
			return nil, err
		}
		t.issuersMu.Lock()
		defer t.issuersMu.Unlock()
		t.issuers, t.issuersAt = known, time.Now()
		return known, nil
	})
	if err != nil {
		return nil, err
	}
	return known.([]*store.Bundle), nil
}

func (t *term) readIssuers(ctx context.Context, configured func(directory string) bool) (known []*store.Bundle, err error) {
	seen := map[string]bool{}
	for _, s := range []store.Store{t.copy, t.store} {
		if s == nil {
			continue
		}
		l, err := store.ListFacts(ctx, s, store.KindIssued)
		if err != nil {
			return nil, &storeError{err}
		}
		for _, e := range l.Entries {
			c := e.Record.(*store.Certificate)
			if seen[c.Issuer] || !configured(c.CA) {
				continue
			}
			whole, err := get[*store.Certificate](ctx, s, store.KindIssued, c.Name)
			if readable(err) != nil {
				return nil, err
			}
			if err != nil || whole == nil {
				continue
			}
			if b, err := whole.Bundle(); err == nil {
				known, seen[c.Issuer] = append(known, b), true
			}
		}
	}
	return known, nil
}
