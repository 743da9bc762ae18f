package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spoacme/spoacme/store"
)

// plan is one decision to go for a certificate, made on reads of its own: what the index says is only the occasion.
type plan struct {
	name     string
	why      reason
	wanted   *store.Wanted      // nil when an order is finished that nobody wants any more
	old      *store.Certificate // nil without one
	revision store.Revision     // of issued/<name>, at the decision
	gone     time.Time          // when an earlier one of its name was removed; zero for never
	order    store.Order        // to be placed (no URL) or to be gone on with
	prev     *store.Attempt     // nil without one
	attempt  *store.Attempt     // the one that begins now
	stored   *store.Certificate // what came of it
}

// errNothing means that the fresh read shows nothing to do.
var errNothing = errors.New("nothing to do")

// newPlan reads what there is about a certificate and decides. Time alone counts by the CA's clock.
func (t *term) newPlan(ctx context.Context, c candidate) (*plan, error) {
	p := &plan{name: c.name, gone: c.gone}
	placed, err := p.read(ctx, t.store)
	if err != nil {
		return nil, err
	}
	if placed != nil && placed.URL != "" {
		p.why, p.order = recorded, *placed
		return p, nil
	}
	if p.wanted == nil || !active(p.wanted) {
		return nil, errNothing
	}
	if p.why, err = t.reason(p, c.ca); err != nil {
		return nil, err
	}
	// What an operator asked this very leader for, no node can have yet. A renew that was found in the store may have been
	// carried out before the store went back to it.
	if p.why != asked || !p.wanted.RenewAsked.Equal(c.renew) {
		found, err := t.regain(ctx, p)
		if err != nil {
			return nil, err
		}
		if found {
			return nil, errRegained
		}
	}
	if p.wanted.Spec.Challenge == "dns-01" {
		return nil, &failure{class: classRefused, err: errors.New("dns-01 is not built in; use http-01")}
	}
	p.order = store.Order{
		Name: p.name, CA: c.ca.Directory, Account: AccountID(c.ca), Spec: p.wanted.Spec, Generation: p.wanted.Generation,
		Started: time.Now().UTC(),
	}
	if placed != nil && placed.Spec.KeyType == p.order.Spec.KeyType {
		p.order.Private = placed.Private // the intent of a try that was cut short
	}
	return p, nil
}

func (t *term) reason(p *plan, ca CA) (reason, error) {
	var have *facts
	if p.old != nil {
		have = factsOf(p.old)
	}
	why, _ := due(p.wanted, have, time.Now())
	if why == aged {
		c, err := t.client(ca.Directory, AccountID(ca))
		if err != nil {
			return why, err
		}
		var at time.Time
		if why, at = due(p.wanted, have, c.now()); why == notDue {
			return why, &notYet{at.Sub(c.now())}
		}
	}
	if why == notDue {
		return why, errNothing
	}
	return why, nil
}

// notYet says that our clock is wrong: by the CA's the certificate is not due for some time.
type notYet struct{ wait time.Duration }

func (e *notYet) Error() string { return fmt.Sprintf("not due for %s by the CA's clock", e.wait) }

// read fills what the plan knows of the store. What can't be read is left alone, and so is the certificate.
func (p *plan) read(ctx context.Context, s store.Store) (*store.Order, error) {
	if err := p.reread(ctx, s); err != nil {
		return nil, err
	}
	wanted, err := get[*store.Wanted](ctx, s, store.KindWanted, p.name)
	if err != nil {
		return nil, err
	}
	p.wanted = wanted
	if p.prev, err = get[*store.Attempt](ctx, s, store.KindAttempt, p.name); err != nil {
		return nil, err
	}
	return get[*store.Order](ctx, s, store.KindOrder, p.name)
}

// reread reads the certificate anew, with the revision that the next commit depends on.
func (p *plan) reread(ctx context.Context, s store.Store) error {
	e, err := s.Get(ctx, store.Key{Kind: store.KindIssued, Name: p.name})
	if err != nil && !errors.Is(err, store.ErrAbsent) {
		return &storeError{err}
	}
	p.old, _ = e.Record.(*store.Certificate)
	p.revision = e.Revision
	return nil
}

// get reads a record; nil when there is none.
func get[R store.Record](ctx context.Context, s store.Store, kind store.Kind, name string) (r R, err error) {
	e, err := s.Get(ctx, store.Key{Kind: kind, Name: name})
	if errors.Is(err, store.ErrAbsent) {
		return r, nil
	}
	if err != nil {
		return r, &storeError{err}
	}
	return e.Record.(R), nil
}

// unchanged is the condition that the certificate is the one that the decision was about.
func (p *plan) unchanged() []store.Precondition {
	return []store.Precondition{{Key: store.Key{Kind: store.KindIssued, Name: p.name}, Revision: p.revision}}
}

// end removes what is kept of an order that is over.
func (p *plan) end() []store.Op {
	return []store.Op{
		store.Delete(store.Key{Kind: store.KindOrder, Name: p.name}),
		store.Delete(store.Key{Kind: store.KindAttempt, Name: p.name}),
		store.Delete(store.Key{Kind: store.KindChallenges, Name: p.name}),
	}
}

// active reports whether somebody asks for the certificate.
func active(w *store.Wanted) bool { return len(w.Sources) > 0 || w.IssuedByHand }
