package issuer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// desk is what the loop of a term decides on. Nobody else touches it.
type desk struct {
	index      *index
	pending    news                          // taken, and not worked in yet because the store failed
	running    map[string]context.CancelFunc // by certificate
	held       map[string]time.Time          // certificates that are not looked at before, for reasons that are not stored
	outages    map[string]*outage            // by CA directory
	limited    map[string]int                // rate limits in a row on single certificates, by CA directory
	renewals   map[string]time.Time          // Wanted.RenewAsked of what this term was asked to renew and has not yet
	settingsAt time.Time                     // when the settings last changed during this term
	said       map[string]bool               // warnings that were given already
	looked     bool                          // everything was read since the term has begun
	merged     bool                          // demand and wanted are as the last merge left them
	mergeAt    time.Time                     // when a change that has to wait is due; zero for none
	offersAt   time.Time                     // when to look at offers, or at the own disk; zero for not
	compare    map[string]bool               // certificates that are to be compared with the own disk
	compareAll time.Time                     // when all are; zero for not
	thinking   time.Duration                 // what the last pass spent on going through all there is, not on waiting for others
}

// outage is a CA, or our account there, that fails for every certificate alike.
type outage struct {
	failures int
	until    time.Time
}

func newDesk() desk {
	return desk{
		index: newIndex(), pending: news{keys: map[store.Key]bool{}}, running: map[string]context.CancelFunc{},
		held: map[string]time.Time{}, outages: map[string]*outage{}, limited: map[string]int{}, said: map[string]bool{},
		renewals: map[string]time.Time{}, compare: map[string]bool{},
	}
}

// pass brings everything as far as it can be now and returns when to look again.
func (t *term) pass(ctx context.Context) (next time.Time, err error) {
	if err := t.learn(ctx); err != nil {
		return next, err
	}
	now := time.Now()
	ops := append(t.index.stale(t.running), t.index.oldRequests(now)...)
	if err := t.write(ctx, ops); err != nil {
		return next, err
	}
	if err := t.requests(ctx, now); err != nil {
		return next, err
	}
	if err := t.merge(ctx, now); err != nil {
		return next, err
	}
	if err := t.takeOffers(ctx, now); err != nil {
		return next, err
	}
	if err := t.dropIntents(ctx, now); err != nil {
		return next, err
	}
	next, err = t.start(ctx, now)
	return sooner(sooner(next, t.mergeAt), t.offersAt), err
}

// merge brings what is wanted into step with the demand, when either has changed or a change has waited long enough.
func (t *term) merge(ctx context.Context, now time.Time) error {
	if t.merged && (t.mergeAt.IsZero() || t.mergeAt.After(now)) {
		return nil
	}
	present := t.presence(ctx)
	start := time.Now()
	wanted, again := t.index.merge(now, present)
	t.thinking += time.Since(start)
	var ops []store.Op
	for _, w := range wanted {
		ops = append(ops, store.Put(w))
	}
	if err := t.write(ctx, ops); err != nil {
		return err
	}
	for _, w := range wanted {
		if t.index.wanted[w.Name] != w { // the store refused it
			again = sooner(again, now.Add(lookAgain))
		}
	}
	t.merged, t.mergeAt = true, again
	return nil
}

// learn works the news into the index and the store. What could not be worked in stays pending.
func (t *term) learn(ctx context.Context) error {
	n := t.takeNews()
	t.pending.all = t.pending.all || n.all
	maps.Copy(t.pending.keys, n.keys)
	t.pending.outcomes = append(t.pending.outcomes, n.outcomes...)
	if n.offers {
		t.offersAt = time.Now()
	}
	if t.pending.all {
		if t.looked { // before that, the term has begun with it
			if err := t.reclaim(ctx); err != nil {
				return err
			}
		}
		t.looked = true
		start := time.Now()
		err := t.index.load(ctx, t.store)
		t.thinking += time.Since(start)
		if err != nil {
			return err
		}
	} else if err := t.index.refresh(ctx, t.store, t.settledKeys()); err != nil {
		return err
	}
	for _, text := range slices.Sorted(maps.Values(t.index.unreadable)) {
		t.once("a record is left alone", text)
	}
	t.merged = t.merged && !t.pending.all
	t.noteOwn(t.pending.all, t.settledKeys())
	for _, k := range t.settledKeys() {
		t.merged = t.merged && k.Kind != store.KindDemand && k.Kind != store.KindWanted
		delete(t.held, k.Name)
		delete(t.pending.keys, k)
	}
	t.pending.all = false
	for len(t.pending.outcomes) > 0 {
		if err := t.settle(ctx, t.pending.outcomes[0]); err != nil {
			return err
		}
		t.pending.outcomes = t.pending.outcomes[1:]
	}
	return nil
}

// settledKeys is what is worth reading now: what a running order changes is read when it has ended.
func (t *term) settledKeys() []store.Key {
	var keys []store.Key
	for k := range t.pending.keys {
		if t.running[k.Name] == nil || k.Kind != store.KindIssued && k.Kind != store.KindAttempt {
			keys = append(keys, k)
		}
	}
	return keys
}

// once warns once in a term.
func (t *term) once(msg, text string) {
	if len(t.said) < 1000 && !t.said[text] {
		t.said[text] = true
		t.log.Warn(msg, "err", text)
	}
}

// write commits operations that need no condition and keeps the index in step. What the store refuses, such as
// writing over a record that nobody can read, is reported and left out; the rest is written.
func (t *term) write(ctx context.Context, ops []store.Op) error {
	for _, ops := range chunks(ops) {
		err := t.commit(ctx, nil, ops)
		var refused *failure
		switch {
		case err == nil:
			t.index.apply(ops)
		case !errors.As(err, &refused):
			return err
		case len(ops) == 1:
			t.once("a record can't be written", err.Error())
		default:
			for _, op := range ops {
				if err := t.write(ctx, []store.Op{op}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// candidate is a certificate that looks due.
type candidate struct {
	name   string
	ca     CA
	placed bool      // its order is recorded
	before time.Time // what it has ends then
	renew  time.Time // of the renew that this term was asked for; zero for none
	gone   time.Time // when an earlier one of its name was removed; zero for never
}

// start begins as many tries as there is room for, most urgent first.
func (t *term) start(ctx context.Context, now time.Time) (next time.Time, err error) {
	settings, _ := t.current()
	began := time.Now()
	due, next := t.candidates(&settings, now)
	t.thinking += time.Since(began)
	slices.SortFunc(due, func(a, b candidate) int {
		return cmp.Or(a.before.Compare(b.before), cmp.Compare(a.name, b.name))
	})
	if free := t.maxOrders - len(t.running); len(due) > free {
		due = due[:max(free, 0)]
	}
	due, at, err := t.reserve(ctx, due, now)
	if err != nil {
		return next, err
	}
	for _, c := range due {
		t.try(ctx, c)
	}
	return sooner(next, at), nil
}

// candidates looks through everything wanted and everything under way.
func (t *term) candidates(settings *Settings, now time.Time) (due []candidate, next time.Time) {
	look := func(name string) {
		if t.running[name] != nil {
			return
		}
		if at := t.held[name]; at.After(now) {
			next = sooner(next, at)
			return
		}
		c, at, ok := t.consider(settings, name, now)
		if ok {
			due = append(due, c)
		} else {
			next = sooner(next, at)
		}
	}
	for name := range t.index.wanted {
		look(name)
	}
	for name := range t.index.orders {
		if t.index.wanted[name] == nil {
			look(name)
		}
	}
	return due, next
}

// consider says whether a certificate may be tried now, and if not, when it may be; the zero time means: not by itself.
func (t *term) consider(settings *Settings, name string, now time.Time) (c candidate, at time.Time, ok bool) {
	x := t.index
	w, have, order := x.wanted[name], x.issued[name], x.orders[name]
	c = candidate{name: name, placed: order.url != "", renew: t.renewals[name]}
	if have != nil {
		c.before = have.notAfter
	}
	if !c.placed {
		if w == nil || !active(w) {
			return c, at, false
		}
		why, at := due(w, have, now)
		if why == notDue {
			return c, at, false
		}
	}
	if c.placed {
		c.ca = settings.ca(order.ca)
		at = t.closedUntil(c.ca, now)
	} else {
		c.ca, at = t.choose(settings, w, x.attempts[name], now)
	}
	if at.IsZero() {
		at = t.mayTry(settings, x.attempts[name], c, now)
	}
	if at.IsZero() {
		c.gone = x.removedAt(name)
	}
	return c, at, at.IsZero()
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
