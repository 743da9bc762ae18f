package issuer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// storePause is how long a certificate waits when not even its failure could be stored.
const storePause = 10 * time.Second

// choose picks the CA for a new order: the first that is open, or after a failure that was no name's fault the next one. With
// none open, at is when one may be.
func (t *term) choose(settings *Settings, w *store.Wanted, a *store.Attempt, now time.Time) (ca CA, at time.Time) {
	cas := settings.CAs
	if w.Spec.CA != "" {
		cas = []CA{settings.ca(w.Spec.CA)}
	}
	from := 0
	if blamesCA(a) {
		from = 1 + slices.IndexFunc(cas, func(ca CA) bool { return ca.Directory == a.CA })
	}
	for n := range cas {
		ca := cas[(from+n)%len(cas)]
		closed := t.closedUntil(ca, now)
		if closed.IsZero() {
			_, closed = room(ca, t.index.budgets[ca.id], now)
		}
		if closed.IsZero() {
			return ca, closed
		}
		at = sooner(at, closed)
	}
	return cas[0], at
}

// blamesCA reports whether the last try failed through no fault of a name.
func blamesCA(a *store.Attempt) bool { return a != nil && a.Error != "" && a.Domain == "" }

// closedUntil is the end of an outage or of the CA's Retry-After; the zero time when there is none.
func (t *term) closedUntil(ca CA, now time.Time) time.Time {
	var at time.Time
	if o := t.outages[ca.Directory]; o != nil {
		at = o.until
	}
	if b := t.index.budgets[ca.id]; b != nil && b.Until.After(at) {
		at = b.Until
	}
	if !at.After(now) {
		return time.Time{}
	}
	return at
}

// mayTry says when a candidate may be tried after what happened before; the zero time means now. The next CA
// need not wait for what the one before did wrong, until all have had their turn.
func (t *term) mayTry(settings *Settings, a *store.Attempt, c candidate, now time.Time) time.Time {
	at := ready(a, now)
	if !at.IsZero() && blamesCA(a) {
		another := c.ca.Directory != a.CA && a.Failures < len(settings.CAs)
		if another || !a.Limited && a.Tried.Before(t.settingsAt) {
			at = time.Time{}
		}
	}
	if !at.IsZero() || c.placed {
		return at
	}
	w, have := t.index.wanted[c.name], t.index.issued[c.name]
	if have == nil || !covers(have.domains, w.Spec.Domains) || !covers(w.Spec.Domains, have.domains) {
		return at
	}
	if at = duplicates(c.ca, have, now); !at.IsZero() {
		t.once("the CA's limit on certificates for the same names is near; waiting", c.name+" until "+at.Format(time.RFC3339))
	}
	return at
}

// reserve stores how many orders are about to be placed, where a limit applies, and leaves out those that exceed it.
func (t *term) reserve(ctx context.Context, due []candidate, now time.Time) (granted []candidate, next time.Time, err error) {
	taken := map[string]int{}
	var ops []store.Op
	for _, c := range due {
		n, at := room(c.ca, t.index.budgets[c.ca.id], now)
		if _, limited := c.ca.orderLimit(); limited && !c.placed {
			if taken[c.ca.Directory] >= n {
				next = sooner(next, at)
				continue
			}
			taken[c.ca.Directory]++
		}
		granted = append(granted, c)
	}
	for directory, n := range taken {
		ops = append(ops, store.Put(t.spend(directory, n, now)))
	}
	return granted, next, t.write(ctx, ops)
}

func (t *term) spend(directory string, n int, now time.Time) *store.Budget {
	b := store.Budget{CA: CAID(directory)}
	if old := t.index.budgets[b.CA]; old != nil {
		b = *old
	}
	return spend(b, n, now.UTC())
}

// firstPoll is when an order is first asked about: soon, but later the more the CA has to do for us. Issuing, whose
// Retry-After is long, gets a little more time than validation.
func (t *term) firstPoll(issuing bool) time.Duration {
	many := time.Duration(min(t.inFlight.Load(), 100))
	if issuing {
		return 150*time.Millisecond + many*2*time.Millisecond
	}
	return 100*time.Millisecond + many*time.Millisecond
}

// try works on a certificate in a goroutine of its own, which ends with a report.
func (t *term) try(ctx context.Context, c candidate) {
	ctx, cancel := context.WithCancel(ctx)
	t.running[c.name] = cancel
	t.metrics.inFlight.Set(float64(t.inFlight.Add(1)))
	t.orders.Go(func() {
		o := outcome{name: c.name, began: time.Now(), ca: c.ca.Directory, placed: c.placed}
		o.plan, o.err = t.newPlan(ctx, c)
		if o.err == nil {
			f := &flow{t: t, plan: o.plan}
			o.err = f.run(ctx)
			o.ca = o.plan.order.CA
		}
		o.stopped = ctx.Err() != nil
		cancel()
		t.metrics.inFlight.Set(float64(t.inFlight.Add(-1)))
		t.report(o)
	})
}

// settle draws the conclusions of a try. It may be called again when it fails.
func (t *term) settle(ctx context.Context, o outcome) error {
	var later *notYet
	var broken *storeError
	switch {
	case o.err == nil:
		t.issued(o)
	case o.stopped:
		t.log.Debug("order stopped", "certificate", o.name)
	case errors.Is(o.err, errNothing), errors.Is(o.err, errRegained):
		return t.notTried(ctx, o, time.Second)
	case errors.As(o.err, &later):
		t.once("the clock of this machine or of the CA is wrong; nothing is renewed by it", o.ca)
		return t.notTried(ctx, o, min(later.wait, time.Hour))
	case errors.As(o.err, &broken):
		t.log.Warn("order interrupted; it goes on", "certificate", o.name, "err", o.err)
		return t.notTried(ctx, o, 2*time.Second)
	default:
		return t.failed(ctx, o)
	}
	delete(t.running, o.name)
	return nil
}

// issued takes note of a success.
func (t *term) issued(o outcome) {
	t.index.apply(o.plan.end())
	if o.plan.stored != nil {
		t.index.issued[o.name] = factsOf(o.plan.stored)
	}
	delete(t.renewals, o.name)
	delete(t.outages, o.ca)
	delete(t.limited, o.ca)
	t.metrics.orders.WithLabelValues(CAID(o.ca), "issued").Inc()
	t.metrics.seconds.Observe(time.Since(o.began).Seconds())
	t.metrics.next.DeleteLabelValues(o.name)
	if c := o.plan.stored; c != nil {
		t.log.Info("certificate issued", "certificate", o.name, "why", o.plan.why, "serial", c.Serial, "not_after", c.NotAfter,
			"took", time.Since(o.began).Round(time.Millisecond))
	}
}

// notTried reads what the decision was about anew, and gives back what was reserved.
func (t *term) notTried(ctx context.Context, o outcome, pause time.Duration) error {
	var keys []store.Key
	for _, kind := range []store.Kind{store.KindWanted, store.KindIssued, store.KindOrder, store.KindAttempt} {
		keys = append(keys, store.Key{Kind: kind, Name: o.name})
	}
	if err := t.index.refresh(ctx, t.store, keys); err != nil {
		return err
	}
	if err := t.write(ctx, t.unspent(o)); err != nil {
		return err
	}
	t.held[o.name] = time.Now().Add(pause)
	delete(t.running, o.name)
	return nil
}

// unspent gives back what was reserved for an order that was not placed.
func (t *term) unspent(o outcome) []store.Op {
	settings, _ := t.current()
	if _, limited := settings.ca(o.ca).orderLimit(); !limited || o.placed || o.plan != nil {
		return nil
	}
	return []store.Op{store.Put(t.spend(o.ca, -1, time.Now()))}
}

// failed stores why there is no certificate, and when to try again.
func (t *term) failed(ctx context.Context, o outcome) error {
	now := time.Now()
	f := fail(o.err)
	prev := t.index.attempts[o.name]
	a := t.begun(o.name, o.ca, prev, now.UTC())
	resumed := false
	var ops []store.Op
	if p := o.plan; p != nil {
		prev, resumed = p.prev, p.why == recorded
		if p.attempt != nil {
			a = p.attempt
		}
		if f.gone || p.order.URL == "" || f.hopeless(&p.order, now) {
			ops = p.end()
		} else { // it is gone on with, and the CA may still ask for its tokens
			t.index.put(&p.order, "")
		}
		ops = slices.DeleteFunc(ops, func(op store.Op) bool { return op.Key.Kind == store.KindAttempt })
	}
	a = t.afterwards(a, prev, f, resumed, now.UTC())
	ops = append(ops, store.Put(a))
	if b := t.closed(o.ca, f, now); b != nil {
		ops = append(ops, store.Put(b))
	} else {
		ops = append(ops, t.unspent(o)...)
	}
	if err := t.write(ctx, ops); err != nil {
		return err
	}
	if kept := t.index.attempts[o.name]; kept == nil || !kept.Next.Equal(a.Next) { // the store did not take it
		t.held[o.name] = now.Add(storePause)
	}
	t.metrics.orders.WithLabelValues(CAID(o.ca), f.class.String()).Inc()
	t.metrics.next.WithLabelValues(o.name).Set(float64(a.Next.Unix()))
	t.log.Warn("certificate not issued", "certificate", o.name, "domain", a.Domain, "ca", o.ca, "err", f, "next", a.Next)
	delete(t.running, o.name)
	return nil
}

// closed notes that a CA, or our account there, fails for every certificate alike. What must survive this process and any
// wish of an operator, the CA's own demand, is returned.
func (t *term) closed(directory string, f *failure, now time.Time) *store.Budget {
	switch f.class {
	case classLimited:
		t.limited[directory]++
		if !f.wide && t.limited[directory] < 3 {
			return nil
		}
		until := f.until
		if until.IsZero() {
			until = now.Add(paces[classLimited].first)
		}
		return t.shut(directory, f, until, now)
	case classUnavailable, classAccount:
		if f.gone || f.own || errors.Is(f, errSlow) {
			return nil
		}
		out := t.outages[directory]
		if out == nil {
			out = &outage{}
			t.outages[directory] = out
		}
		if !out.until.After(now) {
			out.failures++
			out.until = now.Add(t.wait(f.class, out.failures))
		}
		if f.until.After(now) {
			return t.shut(directory, f, f.until, now)
		}
	}
	return nil
}

// shut is the budget of a CA that wants no requests before a certain time; an earlier answer that wanted more time still counts.
func (t *term) shut(directory string, f *failure, until, now time.Time) *store.Budget {
	b := t.spend(directory, 0, now)
	if until = until.UTC(); until.After(b.Until) {
		b.Error, b.Until = f.Error(), until
	}
	return b
}
