package issuer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// errand is a request on its way into the store.
type errand struct {
	entry store.Entry
	asks  *store.Request
	ops   []store.Op
}

// requests carries out what operators asked for, as many at once as go into a commit: hundreds may be asked for together. A
// certificate that is being ordered is stopped first before it is removed.
func (t *term) requests(ctx context.Context, now time.Time) error {
	open := slices.SortedFunc(maps.Values(t.index.requests), func(a, b store.Entry) int {
		ra, rb := a.Record.(*store.Request), b.Record.(*store.Request)
		return cmp.Or(ra.Asked.Compare(rb.Asked), cmp.Compare(ra.ID, rb.ID))
	})
	var together []errand
	size, named := 0, map[string]bool{}
	for _, e := range open {
		r := e.Record.(*store.Request)
		if !r.Done.IsZero() {
			continue
		}
		if named[r.Certificate] || size > store.MaxOperations/2 { // what it comes to depends on those before
			if err := t.finishAll(ctx, together, now); err != nil {
				return err
			}
			together, size = nil, 0
			clear(named)
		}
		ops, refused := t.index.carryOut(r, now)
		if stop := t.running[r.Certificate]; stop != nil && refused == nil {
			if r.Op == store.RequestRemove {
				stop()
				continue
			}
			ops = slices.DeleteFunc(ops, func(op store.Op) bool { return op.Key.Kind == store.KindAttempt })
		}
		done := finished(e, ops, refused, now)
		together, size, named[r.Certificate] = append(together, done), size+len(done.ops), true
	}
	return t.finishAll(ctx, together, now)
}

// finished marks a request as done, together with what it does.
func finished(e store.Entry, ops []store.Op, refused error, now time.Time) errand {
	done := *e.Record.(*store.Request)
	done.Done = now.UTC()
	if refused != nil {
		done.Error = refused.Error()
	}
	return errand{e, &done, append(ops, store.Put(&done))}
}

// finishAll writes errands in one commit; when the store refuses that, each on its own.
func (t *term) finishAll(ctx context.Context, errands []errand, now time.Time) error {
	if len(errands) < 2 {
		return t.finishEach(ctx, errands, now)
	}
	var pre []store.Precondition
	var ops []store.Op
	for _, e := range errands {
		pre = append(pre, store.Precondition{Key: e.entry.Key, Revision: e.entry.Revision})
		ops = append(ops, e.ops...)
	}
	err := t.commit(ctx, pre, ops)
	switch {
	case err == nil:
		for _, e := range errands {
			t.carriedOut(e)
		}
		return nil
	case errors.As(err, new(*failure)), errors.Is(err, store.ErrRefused) && ctx.Err() == nil:
		return t.finishEach(ctx, errands, now)
	}
	return err
}

func (t *term) finishEach(ctx context.Context, errands []errand, now time.Time) error {
	for _, e := range errands {
		if err := t.finish(ctx, e, now); err != nil {
			return err
		}
	}
	return nil
}

func (t *term) finish(ctx context.Context, e errand, now time.Time) error {
	err := t.commit(ctx, []store.Precondition{{Key: e.entry.Key, Revision: e.entry.Revision}}, e.ops)
	var changed *storeError
	if errors.As(err, &changed) && errors.Is(err, store.ErrRefused) && ctx.Err() == nil { // withdrawn or rewritten meanwhile
		return t.index.refresh(ctx, t.store, []store.Key{e.entry.Key})
	}
	var invalid *failure
	if errors.As(err, &invalid) && e.asks.Error == "" {
		return t.finish(ctx, finished(e.entry, nil, invalid, now), now)
	}
	if err == nil {
		t.carriedOut(e)
	}
	return err
}

func (t *term) carriedOut(e errand) {
	t.index.apply(e.ops)
	delete(t.held, e.asks.Certificate)
	if e.asks.Op != store.RequestRemove && e.asks.Error == "" {
		t.reopen(e.asks.Certificate)
	}
	if e.asks.Op == store.RequestRenew && e.asks.Error == "" {
		t.renewals[e.asks.Certificate] = e.asks.Done // as carryOut wrote it
	}
	t.merged = false
	t.log.Info("request carried out", "op", e.asks.Op, "certificate", e.asks.Certificate, "refused", e.asks.Error)
}

// carryOut returns what a request comes to: the operations, or why it is refused, in words for the operator.
func (x *index) carryOut(r *store.Request, now time.Time) (ops []store.Op, refused error) {
	switch r.Op {
	case store.RequestIssue:
		return x.issue(r, now)
	case store.RequestRenew:
		return x.renew(r, now)
	case store.RequestRemove:
		return x.remove(r)
	}
	return nil, fmt.Errorf("request %q: not understood by this version; update the leader", r.Op)
}

func (x *index) issue(r *store.Request, now time.Time) ([]store.Op, error) {
	old := x.wanted[r.Certificate]
	if old == nil {
		w := &store.Wanted{Name: r.Certificate, Spec: r.Spec, Generation: 1, IssuedByHand: true}
		return []store.Op{store.Put(w)}, nil
	}
	w := *old
	w.IssuedByHand = true
	if !sameSpec(r.Spec, old.Spec) {
		if nodes := x.askedBy(r.Certificate); len(nodes) > 0 {
			return nil, fmt.Errorf("issue %s: haproxy.cfg of %s asks for it with other words; change SPOACME_CERT_%[1]s there",
				r.Certificate, nodes)
		}
		w.Spec = r.Spec
		w.Generation++
	}
	return append(x.unlock(r.Certificate, now), store.Put(&w)), nil
}

func (x *index) renew(r *store.Request, now time.Time) ([]store.Op, error) {
	old := x.wanted[r.Certificate]
	switch {
	case old == nil:
		return nil, fmt.Errorf("renew %s: no certificate of this name is wanted; see status for those that are", r.Certificate)
	case !active(old):
		return nil, fmt.Errorf("renew %s: nobody asks for it any more; add it to SPOACME_CERTS, or issue it", r.Certificate)
	}
	w := *old
	w.RenewAsked = now.UTC()
	return append(x.unlock(r.Certificate, now), store.Put(&w)), nil
}

func (x *index) remove(r *store.Request) ([]store.Op, error) {
	if nodes := x.askedBy(r.Certificate); len(nodes) > 0 {
		return nil, fmt.Errorf("remove %s: haproxy.cfg of %s asks for it; take it out of SPOACME_CERTS there first", r.Certificate, nodes)
	}
	if x.wanted[r.Certificate] == nil && x.issued[r.Certificate] == nil {
		return nil, fmt.Errorf("remove %s: there is no certificate of this name", r.Certificate)
	}
	var ops []store.Op
	for _, kind := range []store.Kind{store.KindWanted, store.KindIssued, store.KindOrder, store.KindAttempt, store.KindChallenges} {
		ops = append(ops, store.Delete(store.Key{Kind: kind, Name: r.Certificate}))
	}
	return ops, nil
}

// askedBy names the nodes whose haproxy.cfg asks for a certificate; empty when none does.
func (x *index) askedBy(name string) string {
	var nodes []string
	for node, d := range x.demands {
		gone := !d.Seen.IsZero() && time.Since(d.Seen) > absence
		if _, ok := d.Certificates[name]; ok && !gone {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return strings.Join(nodes, ", ")
}

// unlock lets a certificate be tried at once that is waiting after failures, unless the CA demanded the wait. What went wrong stays
// to be read until the next try has ended; the pauses begin anew.
func (x *index) unlock(name string, now time.Time) []store.Op {
	a := x.attempts[name]
	if a == nil || a.Limited {
		return nil
	}
	b := *a
	b.Failures, b.CutShort, b.Next = min(a.Failures, 1), 0, now.UTC()
	return []store.Op{store.Put(&b)}
}

// reopen forgets what this process holds against the CAs that a certificate may come from: who asks for it knows that they are
// mended. What a CA itself demanded is in its budget, and stays.
func (t *term) reopen(name string) {
	if o := t.index.orders[name]; o.url != "" {
		delete(t.outages, o.ca)
	} else if w := t.index.wanted[name]; w != nil && w.Spec.CA != "" {
		delete(t.outages, w.Spec.CA)
	} else {
		clear(t.outages)
	}
}
