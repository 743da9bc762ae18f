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

// orderLimit ends a try; the order itself is gone on with by the next one.
const orderLimit = 10 * time.Minute

// errSlow ends a try, not the order.
var errSlow = fmt.Errorf("the CA was not done within %s; the order goes on with the next try", orderLimit)

// flow is one try at one certificate.
type flow struct {
	t    *term
	plan *plan
	ca   *client
	rec  store.Order   // as it is in the store
	slow time.Duration // how long the CA took to accept the certificate request
}

// run takes the order from where it stands to the stored certificate. A nil error means that the certificate is
// stored. Where the order stands is what the CA says; the record only says which order it is.
func (f *flow) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, orderLimit, errSlow)
	defer cancel()
	defer func() { f.plan.order = f.rec }()
	if err := f.begin(ctx); err != nil {
		return err
	}
	var err error
	if f.ca, err = f.t.client(f.rec.CA, f.rec.Account); err != nil {
		return err
	}
	order, err := f.current(ctx)
	if err != nil {
		return err
	}
	if order.Status == acme.StatusPending {
		if order, err = f.authorize(ctx, order); err != nil {
			return err
		}
	}
	if order.Status == acme.StatusReady {
		if order, err = f.finalize(ctx, order); err != nil {
			return err
		}
	}
	if order.Status == acme.StatusProcessing {
		if order, err = f.poll(ctx, acme.StatusProcessing); err != nil {
			return err
		}
	}
	if order.Status != acme.StatusValid || order.Certificate == "" {
		return f.over(ctx, order)
	}
	return f.fetch(ctx, order)
}

// begin stores the attempt and the order, or the intent to place one, before the CA is called. It fails when the
// certificate has changed since the decision.
func (f *flow) begin(ctx context.Context) error {
	p := f.plan
	f.rec = p.order
	if f.rec.Private.Empty() {
		key, err := newKey(f.rec.Spec.KeyType)
		if err != nil {
			return &failure{class: classRefused, err: err}
		}
		f.rec.Private = store.NewSecret(key)
	}
	p.attempt = f.t.begun(p.name, f.rec.CA, p.prev, time.Now().UTC())
	rec := f.rec
	err := f.t.commit(ctx, p.unchanged(), []store.Op{store.Put(p.attempt), store.Put(&rec)})
	if err != nil {
		return fmt.Errorf("store order: %w", err)
	}
	return nil
}

// current places the order, or asks how the recorded one stands.
func (f *flow) current(ctx context.Context) (acme.ExtendedOrder, error) {
	if f.rec.URL != "" {
		return f.ask(ctx)
	}
	if err := f.t.fence(ctx); err != nil {
		return acme.ExtendedOrder{}, err
	}
	order, err := f.ca.newOrder(&f.rec)
	if isProblem(err, "accountDoesNotExist") {
		order, err = f.again(ctx, err)
	}
	if err != nil {
		return order, err
	}
	f.rec.URL = order.Location
	rec := f.rec
	if err := f.t.commit(ctx, nil, []store.Op{store.Put(&rec)}); err != nil {
		return order, fmt.Errorf("store order: %w", err)
	}
	f.t.log.Debug("order placed", "certificate", f.plan.name, "ca", f.rec.CA, "order", f.rec.URL)
	return order, nil
}

// again registers the account anew, where that is allowed, and places the order.
func (f *flow) again(ctx context.Context, unknown error) (order acme.ExtendedOrder, err error) {
	if settings, _ := f.t.current(); !settings.NewAccount {
		return order, unknown
	}
	if err := f.t.accountUnknown(ctx, f.ca); err != nil {
		return order, errors.Join(unknown, err)
	}
	if f.ca, err = f.t.client(f.rec.CA, f.rec.Account); err != nil {
		return order, err
	}
	return f.ca.newOrder(&f.rec)
}

// ask reads the order. What the CA does not know, and what it lets expire, is over.
func (f *flow) ask(ctx context.Context) (acme.ExtendedOrder, error) {
	order, err := f.ca.order(ctx, &f.rec)
	if err != nil {
		fl := fail(err)
		if fl.gone = isGone(err); fl.gone {
			fl.class = classUnavailable
		} else if isProblem(err, "accountDoesNotExist") { // nor, then, the order
			settings, _ := f.t.current()
			if err := f.t.accountUnknown(ctx, f.ca); err != nil {
				return order, err
			}
			fl.gone = settings.NewAccount
		} else if isProblem(err, "unauthorized") { // it is another account's, or ours was closed
			fl.class = classAccount
		}
		return order, fl
	}
	if isOver(order.Status) {
		return order, f.over(ctx, order)
	}
	if at, err := time.Parse(time.RFC3339, order.Expires); err == nil && order.Status == acme.StatusPending && at.Before(f.ca.now()) {
		return order, &failure{class: classUnavailable, gone: true, err: fmt.Errorf("order expired at %s", order.Expires)}
	}
	return order, nil
}

// finalize sends the certificate request. Whatever the answer, the order says what came of it; an answer that it is not
// ready means that the request arrived before, or that the CA is not done yet.
func (f *flow) finalize(ctx context.Context, order acme.ExtendedOrder) (acme.ExtendedOrder, error) {
	csr, err := newCSR(f.rec.Private, f.rec.Spec.Domains)
	if err != nil {
		return order, &failure{class: classRefused, gone: true, err: err}
	}
	f.rec.Finalized = true
	rec := f.rec
	if err := f.t.commit(ctx, nil, []store.Op{store.Put(&rec)}); err != nil {
		return order, fmt.Errorf("store order: %w", err)
	}
	start := time.Now()
	done, refused := f.ca.core.Orders.UpdateForCSR(order.Finalize, csr)
	f.slow = time.Since(start)
	if refused == nil {
		return done, nil
	}
	if ended(ctx, refused) {
		return order, refused
	}
	refused = fmt.Errorf("finalize order: %w", f.ca.transport.explain(refused))
	if mustWait(refused) {
		return order, refused
	}
	if isProblem(refused, "orderNotReady") {
		return f.poll(ctx, acme.StatusReady, acme.StatusPending)
	}
	now, err := f.ask(ctx)
	if err != nil {
		return now, err
	}
	if now.Status != acme.StatusReady {
		return now, nil
	}
	if fl := fail(refused); fl.class == classRefused || fl.class == classDomain {
		return now, f.abandon(ctx, now, fl)
	}
	return now, refused
}

// abandon ends an order that the CA will never fulfil. A request that is still on its way must not fulfil it after
// all, so one of its authorizations is given up first: then nobody can.
func (f *flow) abandon(ctx context.Context, order acme.ExtendedOrder, why *failure) error {
	if len(order.Authorizations) == 0 {
		return why
	}
	if err := f.ca.core.Authorizations.Deactivate(order.Authorizations[0]); err != nil {
		return why
	}
	if now, err := f.ca.order(ctx, &f.rec); err == nil && now.Status != acme.StatusProcessing && now.Status != acme.StatusValid {
		why.gone = true
	}
	return why
}

// poll asks for the order until it leaves the given states. The first question comes early, whatever the CA asked for:
// most orders are done by then. After that Retry-After is the least pause.
func (f *flow) poll(ctx context.Context, while ...string) (acme.ExtendedOrder, error) {
	pause := f.t.firstPoll(f.rec.Finalized) + min(f.slow, time.Second)
	for {
		if err := sleep(ctx, pause); err != nil {
			return acme.ExtendedOrder{}, err
		}
		order, err := f.ask(ctx)
		if err != nil || !slices.Contains(while, order.Status) {
			return order, err
		}
		pause = min(pause*3/2, 5*time.Second)
		if d := time.Until(f.ca.transport.retryAfterOf(f.rec.URL)); d > pause {
			pause = d
		}
	}
}

// over explains an order that ended without a certificate.
func (f *flow) over(ctx context.Context, order acme.ExtendedOrder) error {
	if blamed := f.blame(ctx, order.Authorizations); blamed != nil {
		return blamed
	}
	if order.Error != nil {
		fl := ofProblem(order.Error)
		fl.err, fl.gone = fmt.Errorf("order is %s: %w", oneLine(order.Status), fl.err), isOver(order.Status)
		return fl
	}
	return &failure{class: classUnavailable, gone: isOver(order.Status),
		err: fmt.Errorf("order is %s and the CA does not say why", oneLine(order.Status))}
}

// isOver reports whether nothing can come of an order any more.
func isOver(status string) bool {
	switch status {
	case acme.StatusInvalid, acme.StatusExpired, acme.StatusDeactivated, acme.StatusRevoked:
		return true
	}
	return false
}

// sleep pauses unless ctx ends first; it returns why.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
