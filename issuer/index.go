package issuer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/store"
)

// kept is what the index holds. What an order writes while it runs is not watched; an edit of somebody else shows when the
// order is next taken up.
var (
	kept    = append([]store.Kind{store.KindOrder, store.KindChallenges}, watched...)
	watched = []store.Kind{store.KindWanted, store.KindIssued, store.KindAttempt, store.KindBudget, store.KindDemand, store.KindRequest}
)

// index is what the term knows of the store: the records themselves, except that of a certificate only the facts are
// kept. The loop alone touches it. It says what may be due; what is due is decided on a fresh read (see plan).
type index struct {
	wanted     map[string]*store.Wanted
	issued     map[string]*facts
	orders     map[string]orderFacts
	attempts   map[string]*store.Attempt
	budgets    map[string]*store.Budget
	challenges map[string]uint64 // generation
	demands    map[string]*store.Demand
	requests   map[string]store.Entry
	unreadable map[string]string // error by key or, from a listing, by its own text
	partial    bool              // some demand can't be read: nobody's demand is withdrawn
	seen       map[string]sight  // when each node's demand came
}

type orderFacts struct{ ca, url string }

func newIndex() *index {
	return &index{
		wanted: map[string]*store.Wanted{}, issued: map[string]*facts{}, orders: map[string]orderFacts{},
		attempts: map[string]*store.Attempt{}, budgets: map[string]*store.Budget{}, challenges: map[string]uint64{},
		demands: map[string]*store.Demand{}, requests: map[string]store.Entry{}, unreadable: map[string]string{},
		seen: map[string]sight{},
	}
}

// put takes a record over; the revision matters for requests only.
func (x *index) put(r store.Record, rev store.Revision) {
	switch r := r.(type) {
	case *store.Wanted:
		x.wanted[r.Name] = r
	case *store.Certificate:
		x.issued[r.Name] = factsOf(r)
	case *store.Order:
		x.orders[r.Name] = orderFacts{r.CA, r.URL}
	case *store.Attempt:
		x.attempts[r.Name] = r
	case *store.Budget:
		x.budgets[r.CA] = r
	case *store.Challenges:
		x.challenges[r.Name] = r.Generation
	case *store.Demand:
		x.demands[r.Node] = r
		x.note(r, time.Now())
	case *store.Request:
		x.requests[r.ID] = store.Entry{Key: r.Key(), Record: r, Revision: rev}
	}
}

func (x *index) drop(k store.Key) {
	switch k.Kind {
	case store.KindWanted:
		delete(x.wanted, k.Name)
	case store.KindIssued:
		delete(x.issued, k.Name)
	case store.KindOrder:
		delete(x.orders, k.Name)
	case store.KindAttempt:
		delete(x.attempts, k.Name)
	case store.KindBudget:
		delete(x.budgets, k.Name)
	case store.KindChallenges:
		delete(x.challenges, k.Name)
	case store.KindDemand:
		delete(x.demands, k.Name)
	case store.KindRequest:
		delete(x.requests, k.Name)
	}
}

// apply does to the index what a commit did to the store.
func (x *index) apply(ops []store.Op) {
	for _, op := range ops {
		if op.Record != nil {
			x.put(op.Record, "")
		} else {
			x.drop(op.Key)
		}
	}
}

// load reads everything anew. On an error the index is as it was.
func (x *index) load(ctx context.Context, s store.Store) error {
	n := newIndex()
	n.seen = maps.Clone(x.seen)
	for _, kind := range kept {
		l, err := store.ListFacts(ctx, s, kind)
		if err != nil {
			return err
		}
		for _, e := range l.Entries {
			n.put(e.Record, e.Revision)
		}
		for _, err := range l.Unreadable {
			n.unreadable[err.Error()] = err.Error()
		}
		n.partial = n.partial || kind == store.KindDemand && len(l.Unreadable) > 0
	}
	*x = *n
	return nil
}

// refresh reads the given records anew.
func (x *index) refresh(ctx context.Context, s store.Store, keys []store.Key) error {
	entries := make([]store.Entry, len(keys))
	problems := make([]error, len(keys))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, k := range keys {
		g.Go(func() error {
			entries[i], problems[i] = s.Get(gctx, k)
			err := problems[i]
			if err == nil || errors.Is(err, store.ErrAbsent) || errors.Is(err, store.ErrUnreadable) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, k := range keys {
		switch err := problems[i]; {
		case err == nil:
			delete(x.unreadable, k.String())
			x.put(entries[i].Record, entries[i].Revision)
		case errors.Is(err, store.ErrUnreadable):
			x.unreadable[k.String()] = err.Error()
			x.partial = x.partial || k.Kind == store.KindDemand
		default:
			delete(x.unreadable, k.String())
			x.drop(k)
		}
	}
	return nil
}

// stale lists the tokens that no order stands behind.
func (x *index) stale(running map[string]context.CancelFunc) []store.Op {
	var ops []store.Op
	for _, name := range slices.Sorted(maps.Keys(x.challenges)) {
		if _, busy := running[name]; !busy && x.orders[name].url == "" {
			ops = append(ops, store.Delete(store.Key{Kind: store.KindChallenges, Name: name}))
		}
	}
	return ops
}

// remembered is how long a removal is: a node that was down has to hear of it, and what it still has of the certificate must
// not come back.
const remembered = 30 * 24 * time.Hour

// oldRequests lists the commands that were carried out an hour ago, but for each certificate's last removal.
func (x *index) oldRequests(now time.Time) []store.Op {
	var ops []store.Op
	for _, e := range x.requests {
		r := e.Record.(*store.Request)
		if r.Done.IsZero() || now.Sub(r.Done) <= time.Hour {
			continue
		}
		if removed(r) && now.Sub(r.Done) <= remembered && !r.Done.Before(x.removedAt(r.Certificate)) {
			continue
		}
		ops = append(ops, store.Delete(e.Key))
	}
	return ops
}

// removed reports whether a request has removed its certificate.
func removed(r *store.Request) bool {
	return r.Op == store.RequestRemove && !r.Done.IsZero() && r.Error == ""
}

// removedAt is when a certificate was last removed; zero when it was not, or nobody remembers.
func (x *index) removedAt(name string) (at time.Time) {
	for _, e := range x.requests {
		if r := e.Record.(*store.Request); r.Certificate == name && removed(r) && r.Done.After(at) {
			at = r.Done
		}
	}
	return at
}
