package issuer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// gap tells, of what a copy has and the store has not, what is rightly gone. The store is not believed where it merely lacks
// something: it may have been emptied, or be a snapshot from before. A certificate and what was issued by hand go by a removal that
// the store remembers; an order goes when its certificate is stored, or when a try that began with it or later ended
// without it: try and order are written together, so a store that knows of the try had the order.
type gap struct {
	from, copy store.Store
	now        time.Time

	trusted  func(context.Context) (bool, error)
	removals func(context.Context) (map[string]time.Time, error)
}

func newGap(from, copy store.Store) *gap {
	g := &gap{from: from, copy: copy, now: time.Now()}
	g.trusted, g.removals = once(g.readTrust), once(g.readRemovals)
	return g
}

// once makes a function that is worked out at its first call.
func once[T any](f func(context.Context) (T, error)) func(context.Context) (T, error) {
	var o sync.Once
	var v T
	var err error
	return func(ctx context.Context) (T, error) {
		o.Do(func() { v, err = f(ctx) })
		return v, err
	}
}

const (
	// markName is the node under which a copy notes, as a demand, when it last had seen all of the store.
	markName = "copy"
	// markGood is for how long a copy that sees nothing of the store may speak against it: as long as it would still find the removals
	// that it has missed.
	markGood = remembered - 2*24*time.Hour
	// clocksApart is by how much the clocks of two leaders may differ.
	clocksApart = 5 * time.Minute
)

func mark(now time.Time) *store.Demand {
	return &store.Demand{Node: markName, Certificates: map[string]store.Spec{}, Since: now.UTC(), Seen: now.UTC()}
}

// readTrust reports whether the copy may know better than the store: it was in step with it of late, or the store has
// lost an account.
func (g *gap) readTrust(ctx context.Context) (bool, error) {
	d, err := get[*store.Demand](ctx, g.copy, store.KindDemand, markName)
	if err != nil || d != nil && g.now.Sub(d.Seen) < markGood {
		return err == nil, err
	}
	lost, err := lostAccounts(ctx, g.from, g.copy)
	return len(lost) > 0, err
}

// readRemovals reads when certificates were last removed.
func (g *gap) readRemovals(ctx context.Context) (map[string]time.Time, error) {
	l, err := g.from.List(ctx, store.KindRequest)
	if err != nil {
		return nil, err
	}
	at := map[string]time.Time{}
	for _, e := range l.Entries {
		if r := e.Record.(*store.Request); removed(r) && r.Done.After(at[r.Certificate]) {
			at[r.Certificate] = r.Done
		}
	}
	return at, nil
}

// over reports whether a record of the copy that the store has not may be given up.
func (g *gap) over(ctx context.Context, r store.Record) (bool, error) {
	if over, err := g.explained(ctx, r); over || err != nil {
		return over, err
	}
	if _, ok := r.(*store.Account); ok {
		return false, nil
	}
	trusted, err := g.trusted(ctx)
	return !trusted, err
}

func (g *gap) explained(ctx context.Context, r store.Record) (bool, error) {
	switch r := r.(type) {
	case *store.Wanted:
		if !r.IssuedByHand { // whose haproxy.cfg asks for it goes on asking
			return true, nil
		}
		since, err := g.latest(ctx, r.Name)
		if err != nil {
			return false, err
		}
		return g.removedAfter(ctx, r.Name, since)
	case *store.Certificate:
		if !g.now.Before(r.NotAfter) {
			return true, nil
		}
		return g.removedAfter(ctx, r.Name, r.IssuedAt)
	case *store.Order:
		return g.ended(ctx, r)
	}
	return false, nil
}

// removedAfter reports whether an operator has removed a certificate since.
func (g *gap) removedAfter(ctx context.Context, name string, since time.Time) (bool, error) {
	removals, err := g.removals(ctx)
	at, ok := removals[name]
	return ok && at.Add(clocksApart).After(since), err
}

// latest is the last sign in the copy that a certificate was asked for: it may have been removed and issued again.
func (g *gap) latest(ctx context.Context, name string) (at time.Time, err error) {
	c, err := get[*store.Certificate](ctx, g.copy, store.KindIssued, name)
	if err == nil && c != nil {
		at = c.IssuedAt
	}
	o, err2 := get[*store.Order](ctx, g.copy, store.KindOrder, name)
	if err2 == nil && o != nil && o.Started.After(at) {
		at = o.Started
	}
	return at, errors.Join(readable(err), readable(err2))
}

// readable drops the error of a record that can't be read.
func readable(err error) error {
	if errors.Is(err, store.ErrUnreadable) {
		return nil
	}
	return err
}

// ended reports whether an order has come to its end: it was never placed, is too old, has its certificate, or a later try is known.
func (g *gap) ended(ctx context.Context, o *store.Order) (bool, error) {
	if o.URL == "" || g.now.Sub(o.Started) > week {
		return true, nil
	}
	for _, s := range []store.Store{g.from, g.copy} {
		c, err := get[*store.Certificate](ctx, s, store.KindIssued, o.Name)
		if readable(err) != nil {
			return false, err
		}
		if err == nil && c != nil && !c.IssuedAt.Before(o.Started) {
			return true, nil
		}
	}
	tried, err := get[*store.Attempt](ctx, g.from, store.KindAttempt, o.Name)
	if readable(err) != nil {
		return false, err
	}
	if err == nil && tried != nil && !tried.Tried.Before(o.Started) {
		return true, nil
	}
	return g.removedAfter(ctx, o.Name, o.Started)
}

// lostAccounts lists the accounts that are in the copy and not in the store.
func lostAccounts(ctx context.Context, from, copy store.Store) ([]store.Entry, error) {
	had, err := copy.List(ctx, store.KindAccount)
	if err != nil || len(had.Entries) == 0 {
		return nil, err
	}
	have, err := from.List(ctx, store.KindAccount)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(had.Entries, func(e store.Entry) bool {
		_, there := slices.BinarySearchFunc(have.Entries, e.Key.Name, func(h store.Entry, name string) int { return cmp.Compare(h.Key.Name, name) })
		return there || len(have.Unreadable) > 0
	}), nil
}
