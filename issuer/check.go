package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-acme/lego/v4/acme"

	"github.com/spoacme/spoacme/store"
)

// week is the period of a CA's limit on certificates for the same names.
const week = 7 * 24 * time.Hour

// fetch downloads the certificate, checks it and stores it.
func (f *flow) fetch(ctx context.Context, order acme.ExtendedOrder) error {
	chain, err := f.ca.certificate(ctx, order.Certificate)
	if err != nil {
		return err
	}
	b, err := store.ParseBundle(chain, f.rec.Private.Reveal())
	if err != nil {
		return f.damaged(ctx, chain, err)
	}
	cert, err := f.check(b)
	var late *failure
	if errors.As(err, &late) {
		return late
	}
	if err != nil {
		return &failure{class: classRefused, gone: true, err: fmt.Errorf("refuse the CA's certificate: %w", err)}
	}
	cert.URL = order.Certificate
	return f.keep(ctx, cert)
}

// damagedFor is for how long the same damage must come before an order is given up for it.
const damagedFor = 6 * time.Hour

// damaged keeps the order of a download that is no certificate for our key: what was cut off or mixed up on its way comes whole the next
// time, and another order would be a second certificate. What stays the same for hours is what the CA has.
func (f *flow) damaged(ctx context.Context, chain []byte, why error) error {
	now := time.Now().UTC()
	if d := digest(string(chain)); f.rec.Damaged != d {
		f.rec.Damaged, f.rec.DamagedAt = d, now
		rec := f.rec
		if err := f.t.commit(ctx, nil, []store.Op{store.Put(&rec)}); err != nil {
			return fmt.Errorf("store order: %w", err)
		}
	}
	fl := &failure{class: classUnavailable, own: true, err: fmt.Errorf("refuse the CA's certificate: %w", why)}
	if now.Sub(f.rec.DamagedAt) >= damagedFor {
		fl.class, fl.gone = classRefused, true
	}
	return fl
}

// check makes the record of a chain that belongs to our key, if it has all names, is valid now and complete.
func (f *flow) check(b *store.Bundle) (*store.Certificate, error) {
	if f.plan.why == recorded && !f.ca.now().Before(b.NotAfter) { // nobody was there to fetch it: not the CA's fault
		return nil, &failure{class: classUnavailable, gone: true, err: fmt.Errorf("it expired at %s, before it was fetched", b.NotAfter)}
	}
	if err := b.Check(f.ca.now(), f.rec.Spec.Domains); err != nil {
		return nil, err
	}
	return &store.Certificate{
		Name: f.plan.name, Domains: f.rec.Spec.Domains, Chain: string(b.Chain()), Private: store.NewSecret(b.Key()),
		Serial: b.Serial, Fingerprint: b.Fingerprint, Issuer: b.Issuer, NotBefore: b.NotBefore, NotAfter: b.NotAfter,
		CA: f.rec.CA, Generation: f.rec.Generation, RenewAt: draw(b.NotBefore, b.NotAfter, f.t.jitter), ARIID: ariID(b.Chain()),
	}, nil
}

// keep stores the certificate and ends the order in one commit, on condition that the stored certificate is still the one that
// the decision was about. Where somebody has put another one there meanwhile, the better of the two stays.
func (f *flow) keep(ctx context.Context, cert *store.Certificate) error {
	p := f.plan
	for n := range 3 {
		if n > 0 {
			if err := p.reread(ctx, f.t.store); err != nil {
				return fmt.Errorf("store certificate: %w", err)
			}
		}
		if f.outdone(cert, n > 0) {
			f.t.log.Warn("a better certificate is stored already; it is kept", "certificate", p.name, "serial", p.old.Serial, "not", cert.Serial)
			return f.t.commit(ctx, p.unchanged(), p.end())
		}
		now := time.Now().UTC()
		cert.IssuedAt = now
		if p.wanted != nil && cert.IssuedAt.Before(p.wanted.RenewAsked) { // the clock was set back since
			cert.IssuedAt = p.wanted.RenewAsked
		}
		cert.Before = issuedBefore(p.old, cert.Domains, now)
		ops := append(p.end(), store.Put(cert))
		err := f.t.commit(ctx, p.unchanged(), ops)
		if err == nil {
			p.stored = cert
			return nil
		}
		if invalid := (*failure)(nil); errors.As(err, &invalid) || !errors.Is(err, store.ErrRefused) {
			return err
		}
	}
	return errors.New("store certificate: the record changes all the time")
}

// outdone reports whether what is stored is better than what an order has brought: it was put there meanwhile, or the order is an
// old one that a restore has brought back, and what came of later ones was taken back already.
func (f *flow) outdone(cert *store.Certificate, meanwhile bool) bool {
	p := f.plan
	switch {
	case p.old == nil:
		return false
	case meanwhile && !p.old.NotAfter.Before(cert.NotAfter) && covers(p.old.Domains, cert.Domains):
		return true
	case p.why != recorded: // the decision was to replace it, whatever its dates
		return false
	case p.old.Fingerprint == cert.Fingerprint:
		return true
	}
	held, err := p.old.Bundle()
	if err != nil {
		return false
	}
	b, err := cert.Bundle()
	return err == nil && b.Worse(held, f.ca.now()) != nil
}

// issuedBefore lists when certificates for the same names were issued within the last week.
func issuedBefore(old *store.Certificate, domains []string, now time.Time) []time.Time {
	if old == nil || !covers(old.Domains, domains) || !covers(domains, old.Domains) {
		return nil
	}
	all := append(slices.Clone(old.Before), old.IssuedAt)
	all = slices.DeleteFunc(all, func(at time.Time) bool { return now.Sub(at) > week })
	return all[max(0, len(all)-10):]
}

// covers reports whether every name of want is in have.
func covers(have, want []string) bool {
	for _, d := range want {
		if !slices.Contains(have, d) {
			return false
		}
	}
	return true
}
