package issuer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// copied is what a process that may lead keeps of the shared store for itself, in the order in which it is put back: the
// account is last, because its absence is what tells that the store was lost.
var copied = []store.Kind{store.KindWanted, store.KindOrder, store.KindIssued, store.KindAccount}

// KeepCopy keeps account, open orders, certificates and what was issued by hand in a store of this process's own,
// until ctx ends. What the store does not have is given up only where it is known why it has not (see gap): a store that
// was lost, or that is an older one, takes nothing from the copy.
func KeepCopy(ctx context.Context, from, to store.Store, log *slog.Logger) error {
	lease, err := to.Lead(ctx)
	if err != nil {
		return nil //nolint:nilerr // ctx ended
	}
	defer lease.Release()
	k := &copier{from: from, to: to, lease: lease, log: log, keys: map[store.Key]bool{}, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { k.run(ctx) })
	return from.Follow(ctx, k.changed, copied...)
}

// copier brings news of one store into another.
type copier struct {
	from, to store.Store
	lease    store.Lease
	log      *slog.Logger
	wake     chan struct{}

	mu   sync.Mutex
	all  bool
	keys map[store.Key]bool
}

// copiedAgain is when everything is compared though nothing has changed: what has expired in the copy goes, and the copy's mark says
// that nothing was missed.
const copiedAgain = 24 * time.Hour

func (k *copier) changed(keys []store.Key) {
	k.mu.Lock()
	k.all = k.all || keys == nil
	for _, key := range keys {
		k.keys[key] = true
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *copier) run(ctx context.Context) {
	failed := false
	again := time.NewTicker(copiedAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			k.changed(nil)
			continue
		case <-k.wake:
		}
		k.mu.Lock()
		all, keys := k.all, k.keys
		k.all, k.keys = false, map[store.Key]bool{}
		k.mu.Unlock()
		err := k.bring(ctx, all, keys)
		if err == nil {
			failed = false
			continue
		}
		if !failed && ctx.Err() == nil {
			k.log.Warn("the copy of account and certificates is not up to date; trying again", "err", err)
		}
		failed = true
		if sleep(ctx, 5*time.Second) != nil {
			return
		}
		k.changed(nil)
	}
}

func (k *copier) bring(ctx context.Context, all bool, keys map[store.Key]bool) error {
	why := newGap(k.from, k.to)
	if !all {
		for _, key := range slices.SortedFunc(maps.Keys(keys), func(a, b store.Key) int { return cmp.Compare(a.String(), b.String()) }) {
			if err := k.one(ctx, key, why); err != nil {
				return err
			}
		}
		return nil
	}
	for _, kind := range copied {
		if err := k.kind(ctx, kind, why); err != nil {
			return err
		}
	}
	return k.commit(ctx, []store.Op{store.Put(mark(time.Now()))})
}

// one makes the copy of one record as the original is.
func (k *copier) one(ctx context.Context, key store.Key, why *gap) error {
	ops, err := k.read(ctx, key, why)
	if err != nil || len(ops) == 0 {
		return err
	}
	return k.commit(ctx, ops)
}

// read says what to write so that the copy of a record is as the original.
func (k *copier) read(ctx context.Context, key store.Key, why *gap) ([]store.Op, error) {
	e, err := k.from.Get(ctx, key)
	if errors.Is(err, store.ErrUnreadable) {
		return nil, nil
	}
	if err == nil {
		return k.put(ctx, e.Record), nil
	}
	if !errors.Is(err, store.ErrAbsent) {
		return nil, err
	}
	had, err := k.to.Get(ctx, key)
	if errors.Is(err, store.ErrAbsent) || errors.Is(err, store.ErrUnreadable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if over, err := why.over(ctx, had.Record); err != nil || !over {
		return nil, err
	}
	return []store.Op{store.Delete(key)}, nil
}

// kind makes the copy of one kind as the original is. Only what differs is read whole: 10,000 certificates with their keys are not
// held at once.
func (k *copier) kind(ctx context.Context, kind store.Kind, why *gap) error {
	now, err := store.ListFacts(ctx, k.from, kind)
	if err != nil {
		return err
	}
	had, err := store.ListFacts(ctx, k.to, kind)
	if err != nil {
		return err
	}
	copies := map[store.Key]store.Record{}
	for _, e := range had.Entries {
		copies[e.Key] = e.Record
	}
	var ops []store.Op
	for _, e := range now.Entries {
		old, there := copies[e.Key]
		delete(copies, e.Key)
		if there && reflect.DeepEqual(old, e.Record) {
			continue
		}
		more, err := k.changes(ctx, e, why)
		if err != nil {
			return err
		}
		if ops = append(ops, more...); len(ops) >= copiedAtOnce {
			if err := k.commit(ctx, ops); err != nil {
				return err
			}
			ops = nil
		}
	}
	if len(now.Unreadable) > 0 {
		clear(copies) // one of them may be there
	}
	for key, r := range copies {
		over, err := why.over(ctx, r)
		if err != nil {
			return err
		}
		if over {
			ops = append(ops, store.Delete(key))
		}
	}
	for part := range slices.Chunk(ops, copiedAtOnce) {
		if err := k.commit(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// copiedAtOnce is how many records of the usual size are written together.
const copiedAtOnce = 20

// changes is read for a record of a listing, which lacks what store.DropPEM drops.
func (k *copier) changes(ctx context.Context, e store.Entry, why *gap) ([]store.Op, error) {
	switch e.Record.(type) {
	case *store.Certificate, *store.Order:
		return k.read(ctx, e.Key, why)
	}
	return k.put(ctx, e.Record), nil
}

// put writes a record, but never a certificate over a better one.
func (k *copier) put(ctx context.Context, r store.Record) []store.Op {
	old, err := k.to.Get(ctx, r.Key())
	if err == nil && sameRecord(old.Record, r) {
		return nil
	}
	if c, ok := r.(*store.Certificate); ok {
		b, bad := c.Bundle()
		if bad != nil {
			return nil // it is nothing that anybody could use
		}
		if had, ok := old.Record.(*store.Certificate); ok && err == nil {
			if held, _ := had.Bundle(); held != nil && b.Worse(held, time.Now()) != nil {
				return nil
			}
		}
	}
	return []store.Op{store.Put(r)}
}

// commit writes records together, or one by one when they don't fit.
func (k *copier) commit(ctx context.Context, ops []store.Op) error {
	err := k.to.Commit(ctx, k.lease, nil, ops)
	if len(ops) == 1 || !errors.Is(err, store.ErrRefused) {
		return err
	}
	for _, op := range ops {
		if err := k.to.Commit(ctx, k.lease, nil, []store.Op{op}); err != nil {
			return err
		}
	}
	return nil
}
