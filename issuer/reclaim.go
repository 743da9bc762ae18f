package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// reclaim puts back what the store had and this process kept: the account, open orders, certificates, and what was issued by
// hand. It has lost it all, or is an older one, from before some of it. What nodes ask for comes back by itself.
func (t *term) reclaim(ctx context.Context) error {
	settings, _ := t.current()
	if t.copy == nil || settings.NewAccount {
		return nil
	}
	why := newGap(t.store, t.copy)
	var back []string
	for _, kind := range copied {
		keys, err := t.putBack(ctx, kind, why)
		if err != nil {
			return fmt.Errorf("put back what the store lost: %w", err)
		}
		back = append(back, keys...)
	}
	if n := len(back); n > 0 {
		t.log.Warn("the store has lost records, or went back to an older state: they are put back from this node's copy",
			"records", n, "first", back[:min(n, 10)])
	}
	return nil
}

// putBack stores the records of a kind where there are none, and returns their keys. What is being ordered is not touched.
func (t *term) putBack(ctx context.Context, kind store.Kind, why *gap) (back []string, err error) {
	had, err := store.ListFacts(ctx, t.copy, kind)
	if err != nil {
		return nil, err
	}
	have, err := store.ListFacts(ctx, t.store, kind)
	if err != nil || len(have.Unreadable) > 0 {
		return nil, err
	}
	there := map[store.Key]bool{}
	for _, e := range have.Entries {
		there[e.Key] = true
	}
	var ops []store.Op
	for _, e := range had.Entries {
		if there[e.Key] || t.running[e.Key.Name] != nil {
			continue
		}
		r, err := t.asReclaimed(ctx, e, why)
		if err != nil {
			return nil, err
		}
		if r != nil {
			ops = append(ops, store.Put(r))
		}
	}
	for ops := range slices.Chunk(ops, reclaimAtOnce) {
		keys, err := t.putBackAll(ctx, ops)
		back = append(back, keys...)
		if err != nil {
			return back, err
		}
	}
	return back, nil
}

// reclaimAtOnce is how many records of the usual size fit into one commit, each with a part of what Consul's store keeps as its
// manifest: that is 16 kB with 10,000 certificates.
const reclaimAtOnce = 12

// putBackAll writes records where there are still none: together, or each on its own when the store does not take one of them.
func (t *term) putBackAll(ctx context.Context, ops []store.Op) (back []string, err error) {
	var pre []store.Precondition
	for _, op := range ops {
		pre, back = append(pre, store.Precondition{Key: op.Key}), append(back, op.Key.String())
	}
	err = t.commit(ctx, pre, ops)
	var invalid *failure
	switch {
	case err == nil:
		return back, nil
	case !errors.As(err, &invalid):
		return nil, err
	case len(ops) == 1:
		t.once("a record can't be put back", err.Error())
		return nil, nil
	}
	back = nil
	for _, op := range ops {
		keys, err := t.putBackAll(ctx, []store.Op{op})
		back = append(back, keys...)
		if err != nil {
			return back, err
		}
	}
	return back, nil
}

// asReclaimed is a record of the copy as it is put back; nil for one that is not. e is of a listing without keys.
func (t *term) asReclaimed(ctx context.Context, e store.Entry, why *gap) (store.Record, error) {
	if over, err := why.over(ctx, e.Record); over || err != nil {
		return nil, err
	}
	switch r := e.Record.(type) {
	case *store.Wanted:
		c := *r
		c.Sources, c.Note = nil, ""
		return &c, nil
	case *store.Order, *store.Certificate:
		whole, err := t.copy.Get(ctx, e.Key)
		if errors.Is(err, store.ErrAbsent) || errors.Is(err, store.ErrUnreadable) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if c, ok := whole.Record.(*store.Certificate); ok {
			if b, err := c.Bundle(); err != nil || b.Check(time.Now(), nil) != nil {
				return nil, nil
			}
		}
		return whole.Record, nil
	}
	return e.Record, nil
}
