package issuer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// What the store has lost is taken back from where it still is, and nothing is ordered again that is still good: first
// from this process's own copy and disk, then from the nodes, who are asked before every order but one that an operator
// asked this very leader for. When all live nodes have said that they have nothing, or for a minute said nothing, the
// order is placed: so that the first certificates of a new fleet wait for one round of answers and no longer.
//
// What is taken back is looked at as if a CA had sent it: the key fits, the chain is complete as far as the leaf's
// issuer, every signature in it is right, all of it is in date, the leaf is for TLS servers and not self-signed, it
// has a name that is wanted, it is of a configured CA (see trust), it is not older than what is stored, and it is not from before its
// removal by an operator. Every process that can offer holds all private keys already.

// errRegained means that there is no need for an order: a better certificate was found and is stored now.
var errRegained = errors.New("a better certificate was found")

// regain looks for something better than what is stored before an order is placed. It reports whether it stored
// something.
func (t *term) regain(ctx context.Context, p *plan) (bool, error) {
	own := t.own(ctx, p.name, fingerprintOf(p.old))
	r, err := t.look(ctx, p, true, own)
	if err != nil {
		return false, err
	}
	if !r.suffices() && t.fleet != nil {
		if err := t.ask(ctx, p.name, fingerprintOf(p.old)); err != nil {
			return false, err
		}
		offers, err := t.fleet.Offers(ctx, p.name)
		if err != nil {
			return false, &storeError{err}
		}
		if r, err = t.look(ctx, p, true, append(own, offers...)); err != nil {
			return false, err
		}
	}
	if r.best == nil || r.mixed() {
		return false, nil
	}
	return true, t.bring(ctx, r, p.unchanged())
}

// look finds the best certificate of a name; asked says that it was asked for in place of an order. Those of which more is known come
// first: by them the others are judged.
func (t *term) look(ctx context.Context, p *plan, asked bool, found []Offer) (*rescue, error) {
	r := t.newRescue(p)
	r.asked = asked
	unknown := func(o Offer) bool { return o.Certificate.CA == "" }
	if slices.ContainsFunc(found, unknown) {
		var err error
		if r.known, err = t.issuersOf(r.configured); err != nil {
			return nil, err
		}
		r.known = slices.Clip(r.known) // others have the same
		if r.held != nil {
			r.known = append(r.known, r.held)
		}
	}
	for _, o := range slices.DeleteFunc(slices.Clone(found), unknown) {
		r.consider(o.Certificate, o.Node)
	}
	for _, o := range found {
		if unknown(o) {
			r.consider(o.Certificate, o.Node)
		}
	}
	return r, nil
}

// bring stores what was found.
func (t *term) bring(ctx context.Context, r *rescue, pre []store.Precondition) error {
	c := r.record(t.jitter, time.Now())
	if err := t.commit(ctx, pre, []store.Op{store.Put(c)}); err != nil {
		return fmt.Errorf("take certificate back into the store: %w", err)
	}
	t.metrics.regained.Inc()
	t.log.Info("a certificate was taken back into the store", "certificate", c.Name, "from", r.from, "serial", c.Serial, "not_after", c.NotAfter)
	return nil
}

// own is what this process has itself: its copy of the record, and the file of its HAProxy.
func (t *term) own(ctx context.Context, name, stored string) (found []Offer) {
	if t.copy != nil {
		if c, err := get[*store.Certificate](ctx, t.copy, store.KindIssued, name); err == nil && c != nil {
			found = append(found, Offer{Certificate: c})
		}
	}
	if t.disk != nil {
		b, err := t.disk(ctx, name, stored)
		if err != nil && ctx.Err() == nil {
			t.log.Debug("what is on disk can't be read", "certificate", name, "err", err)
		}
		if b != nil {
			found = append(found, Offer{Certificate: certificateOf(name, b)})
		}
	}
	return found
}

// certificateOf is the record of which nothing but the certificate itself is known.
func certificateOf(name string, b *store.Bundle) *store.Certificate {
	return &store.Certificate{
		Name: name, Domains: b.Domains, Chain: string(b.Chain()), Private: store.NewSecret(b.Key()),
		Serial: b.Serial, Fingerprint: b.Fingerprint, Issuer: b.Issuer, NotBefore: b.NotBefore, NotAfter: b.NotAfter,
		IssuedAt: b.NotBefore, ARIID: ariID(b.Chain()),
	}
}

// rescue looks for the best certificate of one name.
type rescue struct {
	name   string
	wanted *store.Wanted      // nil when nobody wants it
	cas    []CA               // of which a certificate may be said to be
	old    *store.Certificate // what is stored; nil for nothing
	gone   time.Time          // what was issued before was removed
	now    time.Time

	asked  bool            // there is nothing to serve, or an order would be placed
	known  []*store.Bundle // of the issuers that may be believed
	unsure []*store.Bundle // candidates of which it is not known where they are from

	held   *store.Bundle      // the best so far, what is stored at first; nil for nothing
	best   *store.Certificate // what it was found as; nil for what is stored
	from   string             // whom it is from
	refuse func(from string, why error)
}

func (t *term) newRescue(p *plan) *rescue {
	settings, _ := t.current()
	r := &rescue{name: p.name, wanted: p.wanted, cas: settings.CAs, old: p.old, gone: p.gone, now: time.Now()}
	if p.old != nil {
		r.held, _ = p.old.Bundle()
	}
	r.refuse = func(from string, why error) {
		t.log.Debug("a certificate is not taken back", "certificate", p.name, "from", from, "err", why)
	}
	return r
}

// consider takes a certificate if it may replace the best so far.
func (r *rescue) consider(c *store.Certificate, node string) {
	from := node
	if from == "" {
		from = "this node"
	}
	b, err := r.check(c)
	if err != nil {
		r.refuse(from, err)
		return
	}
	if r.held != nil && r.held.Fingerprint == b.Fingerprint {
		return
	}
	r.held, r.best, r.from = b, c, from
}

func (r *rescue) check(c *store.Certificate) (*store.Bundle, error) {
	if c.Name != r.name {
		return nil, fmt.Errorf("it is offered as %s", c.Name)
	}
	b, err := c.Bundle()
	if err != nil {
		return nil, err
	}
	if err := b.Check(r.now, nil); err != nil {
		return nil, err
	}
	if r.wanted != nil && !slices.ContainsFunc(r.wanted.Spec.Domains, func(d string) bool { return b.Check(r.now, []string{d}) == nil }) {
		return nil, errors.New("it has none of the names that are wanted")
	}
	if b.NotBefore.Before(r.gone) {
		return nil, errors.New("an operator has removed it")
	}
	if err := r.trust(c, b); err != nil {
		return nil, err
	}
	if r.held != nil && r.held.Fingerprint == b.Fingerprint || newer(b, r.held, r.now) {
		return b, nil
	}
	return nil, errors.New("it is not newer")
}

// suffices reports whether with the best so far there is nothing to order.
func (r *rescue) suffices() bool {
	if r.best == nil || !r.sure() {
		return false
	}
	why, _ := due(r.wanted, factsOf(r.record(func(time.Duration) time.Duration { return 0 }, r.now)), r.now)
	return why == notDue
}

// record is what is stored of the best: the certificate itself, and of where it comes from what can be believed.
func (r *rescue) record(jitter func(time.Duration) time.Duration, now time.Time) *store.Certificate {
	b := r.held
	c := certificateOf(r.name, b)
	if covers(b.Domains, r.best.Domains) && len(r.best.Domains) > 0 {
		c.Domains = r.best.Domains
	}
	for _, said := range []*store.Certificate{r.best, r.old} {
		if said != nil && c.CA == "" && said.Issuer == b.Issuer && r.configured(said.CA) {
			c.CA = said.CA
		}
	}
	if at := r.best.IssuedAt; at.After(b.NotBefore) && !at.After(now) {
		c.IssuedAt = at
	} else if c.IssuedAt = b.NotBefore.Add(time.Hour); c.IssuedAt.After(now) { // CAs date back by up to an hour
		c.IssuedAt = now
	}
	if c.RenewAt = r.best.RenewAt; !c.RenewAt.After(b.NotBefore) || c.RenewAt.After(b.NotAfter) {
		c.RenewAt = draw(b.NotBefore, b.NotAfter, jitter)
	}
	c.IssuedAt, c.RenewAt = c.IssuedAt.UTC(), c.RenewAt.UTC()
	c.URL, c.Before = r.best.URL, r.best.Before
	if r.wanted != nil && covers(c.Domains, r.wanted.Spec.Domains) {
		c.Generation = r.wanted.Generation
	}
	return c
}

// takeOffers stores what nodes offer unasked because the store went back to something older. A certificate that is being
// ordered waits until that is over.
func (t *term) takeOffers(ctx context.Context, now time.Time) error {
	if t.offersAt.IsZero() || t.offersAt.After(now) {
		return nil
	}
	t.offersAt = time.Time{}
	if t.fleet == nil {
		return t.takeOwn(ctx, now)
	}
	offers, err := t.fleet.Offers(ctx, "")
	if err != nil {
		t.offersAt = now.Add(offersAgain)
		t.once("offers of nodes can't be read; trying again", err.Error())
		return nil
	}
	byName := map[string][]Offer{}
	for _, o := range offers {
		byName[o.Certificate.Name] = append(byName[o.Certificate.Name], o)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if t.running[name] != nil {
			t.offersAt = now.Add(offersAgain)
			continue
		}
		if err := t.takeOffer(ctx, name, byName[name]); err != nil {
			t.offersAt = now.Add(offersAgain)
			t.log.Warn("an offer is not taken; trying again", "certificate", name, "err", err)
		}
	}
	return nil
}

const offersAgain = 10 * time.Second

func (t *term) takeOffer(ctx context.Context, name string, offers []Offer) error {
	p := &plan{name: name, gone: t.index.removedAt(name)}
	if err := p.reread(ctx, t.store); err != nil {
		return err
	}
	var err error
	if p.wanted, err = get[*store.Wanted](ctx, t.store, store.KindWanted, name); err != nil {
		return err
	}
	if p.wanted == nil && p.old == nil {
		return nil // it may have been removed
	}
	r, err := t.look(ctx, p, false, append(t.own(ctx, name, fingerprintOf(p.old)), offers...)) // of what is in a copy of our own more is known
	if err != nil {
		return err
	}
	if r.best == nil {
		return nil
	}
	if err := t.bring(ctx, r, p.unchanged()); err != nil {
		return err
	}
	return t.index.refresh(ctx, t.store, []store.Key{{Kind: store.KindIssued, Name: name}})
}
