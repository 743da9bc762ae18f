package issuer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
// until ctx ends. A store that lacks an account that is in the copy was lost, or is an older one: then nothing of the
// copy is given up.
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
	for {
		select {
		case <-ctx.Done():
			return
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
	lost := sync.OnceValues(func() ([]store.Entry, error) { return lostAccounts(ctx, k.from, k.to) })
	if !all {
		for _, key := range slices.SortedFunc(maps.Keys(keys), func(a, b store.Key) int { return cmp.Compare(a.String(), b.String()) }) {
			if err := k.one(ctx, key, lost); err != nil {
				return err
			}
		}
		return nil
	}
	for _, kind := range copied {
		if err := k.kind(ctx, kind, lost); err != nil {
			return err
		}
	}
	return nil
}

// one copies a record that may have changed. With an account lost nothing is given up.
func (k *copier) one(ctx context.Context, key store.Key, lost func() ([]store.Entry, error)) error {
	ops, err := k.read(ctx, key, lost)
	if err != nil || len(ops) == 0 {
		return err
	}
	return k.commit(ctx, ops)
}

// read says what to write so that the copy of a record is as the original.
func (k *copier) read(ctx context.Context, key store.Key, lost func() ([]store.Entry, error)) ([]store.Op, error) {
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
	if gone, err := lost(); err != nil || len(gone) > 0 {
		return nil, err
	}
	return []store.Op{store.Delete(key)}, nil
}

// kind makes the copy of one kind as the original is. Only what differs is read whole: 10,000 certificates with their keys are not
// held at once.
func (k *copier) kind(ctx context.Context, kind store.Kind, lost func() ([]store.Entry, error)) error {
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
		more, err := k.changes(ctx, e, lost)
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
	gone, err := lost()
	if err != nil {
		return err
	}
	if len(gone) == 0 && len(now.Unreadable) == 0 {
		for key := range copies {
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
func (k *copier) changes(ctx context.Context, e store.Entry, lost func() ([]store.Entry, error)) ([]store.Op, error) {
	switch e.Record.(type) {
	case *store.Certificate, *store.Order:
		return k.read(ctx, e.Key, lost)
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

// reclaim puts back what a lost store had and this process kept: the account, open orders, certificates, and what was
// issued by hand. What nodes ask for comes back by itself.
func (t *term) reclaim(ctx context.Context) error {
	settings, _ := t.current()
	if t.copy == nil || settings.NewAccount {
		return nil
	}
	lost, err := lostAccounts(ctx, t.store, t.copy)
	if err != nil || len(lost) == 0 {
		return err
	}
	count := 0
	for _, kind := range copied {
		n, err := t.putBack(ctx, kind)
		if err != nil {
			return fmt.Errorf("put back what the store lost: %w", err)
		}
		count += n
	}
	t.log.Warn("the store had lost the account: it is put back from this node's copy, with what else was lost", "records", count)
	return nil
}

// putBack stores the records of a kind where there are none.
func (t *term) putBack(ctx context.Context, kind store.Kind) (count int, err error) {
	had, err := t.copy.List(ctx, kind)
	if err != nil {
		return 0, err
	}
	have, err := t.store.List(ctx, kind)
	if err != nil || len(have.Unreadable) > 0 {
		return 0, err
	}
	there := map[store.Key]bool{}
	for _, e := range have.Entries {
		there[e.Key] = true
	}
	var ops []store.Op
	for _, e := range had.Entries {
		if r := asReclaimed(e.Record, time.Now()); r != nil && !there[e.Key] {
			ops = append(ops, store.Put(r))
		}
	}
	for ops := range slices.Chunk(ops, reclaimAtOnce) {
		if err := t.commit(ctx, nil, ops); err != nil {
			return count, err
		}
		count += len(ops)
	}
	return count, nil
}

// reclaimAtOnce is how many records of the usual size fit into one commit, each with a part of what Consul's store keeps as its
// manifest: that is 16 kB with 10,000 certificates.
const reclaimAtOnce = 12

// asReclaimed is a record as it is put back; nil for one that is not.
func asReclaimed(r store.Record, now time.Time) store.Record {
	switch r := r.(type) {
	case *store.Wanted:
		if !r.IssuedByHand {
			return nil
		}
		c := *r
		c.Sources, c.Note = nil, ""
		return &c
	case *store.Order:
		if r.URL == "" || now.Sub(r.Started) > week {
			return nil
		}
	case *store.Certificate:
		if b, err := r.Bundle(); err != nil || b.Check(now, nil) != nil {
			return nil
		}
	}
	return r
}
