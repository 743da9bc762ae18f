package consul

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// Limits of a transaction on the oldest server.
const (
	maxTxnOps   = 64
	maxTxnBytes = 512 << 10 // of the request's JSON
)

// commit is one call of Commit on its way to a transaction.
type commit struct {
	ctx    context.Context
	ops    api.TxnOps
	fed    []changedKey        // what the feed tells of it
	issued map[string]*Summary // what changes in the manifest, nil for a deleted certificate
	result chan error
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, lease store.Lease, pre []store.Precondition, ops []store.Op) error {
	if err := ctx.Err(); err != nil {
		return store.Refusedf("%w", err)
	}
	var l *leaseTerm
	if lease != nil {
		var ok bool
		if l, ok = lease.(*leaseTerm); !ok || l.s != s {
			return store.Refusedf("the lease is not of this store")
		}
		if err := l.holds(); err != nil {
			return store.Refusedf("%w", err)
		}
	}
	sealer, err := s.opener(ctx)
	if err != nil {
		return notWritten(err)
	}
	writes, err := store.EncodeCommit(lease, pre, ops, sealer)
	if err != nil {
		return err
	}
	s.just.drop(writes)
	defer s.just.drop(writes) // what a watch read before it was done
	if l != nil {
		if guards, all := l.writer.guards(unguarded(pre, writes)); all {
			err := s.commit(ctx, l, slices.Concat(pre, guards), ops, writes)
			if len(guards) == 0 || !errors.Is(err, store.ErrRefused) || l.holds() != nil {
				return err
			}
			l.writer.forget(guards) // somebody has edited one of them, or a condition of the caller does not hold
		}
	}
	if err := s.refuseUnreadable(ctx, unguarded(pre, writes), sealer); err != nil {
		return err
	}
	return s.commit(ctx, l, pre, ops, writes)
}

// commit writes under a lease or, with none, at once.
func (s *Store) commit(ctx context.Context, l *leaseTerm, pre []store.Precondition, ops []store.Op, writes []store.Write) error {
	c, err := s.newCommit(ctx, pre, ops, writes)
	if err != nil {
		return err
	}
	if l != nil {
		return l.writer.do(c)
	}
	return s.direct(c)
}

// unguarded lists what is written without a precondition.
func unguarded(pre []store.Precondition, writes []store.Write) []store.Key {
	known := map[store.Key]bool{}
	for _, p := range pre {
		known[p.Key] = true
	}
	var keys []store.Key
	for _, w := range writes {
		if !known[w.Key] {
			keys = append(keys, w.Key)
		}
	}
	return keys
}

// refuseUnreadable looks at what would be overwritten without a precondition.
func (s *Store) refuseUnreadable(ctx context.Context, keys []store.Key, sealer store.Sealer) error {
	slices.SortFunc(keys, func(a, b store.Key) int { return strings.Compare(a.String(), b.String()) })
	found, err := s.getMany(ctx, slices.Compact(keys))
	if err != nil {
		return notWritten(err)
	}
	var errs []error
	for k, p := range found {
		if _, err := entry(k, p, sealer); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return store.Refusedf("%w", errors.Join(errs...))
	}
	return nil
}

// newCommit turns encoded writes into operations of a transaction, a precondition on a key that is written into one
// operation with it.
func (s *Store) newCommit(ctx context.Context, pre []store.Precondition, ops []store.Op, writes []store.Write) (*commit, error) {
	c := &commit{ctx: ctx, issued: map[string]*Summary{}, result: make(chan error, 1)}
	at := map[store.Key]*uint64{}
	for _, p := range pre {
		index := new(uint64)
		if p.Revision != "" {
			var err error
			if *index, err = indexOf(p.Revision); err != nil {
				return nil, store.Refusedf("precondition on %s: %w", p.Key, err)
			}
		}
		if old, twice := at[p.Key]; twice && *old != *index {
			return nil, store.Refusedf("two preconditions on %s", p.Key)
		}
		at[p.Key] = index
	}
	for i, w := range writes {
		c.ops = append(c.ops, s.write(w, at[w.Key])...)
		c.note(w, ops[i].Record)
		if (s.cfg.Plain || s.cfg.FromPlain) && w.Key.Kind == store.KindIssued {
			copied, err := s.classic(ctx, w.Key.Name, ops[i].Record)
			if err != nil {
				return nil, notWritten(err)
			}
			c.ops = append(c.ops, copied...)
		}
		delete(at, w.Key)
	}
	for key, index := range at {
		c.ops = append(c.ops, s.check(key, *index))
	}
	return c, nil
}

func kvOp(verb api.KVOp, key string, value []byte, index uint64) *api.TxnOp {
	return &api.TxnOp{KV: &api.KVTxnOp{Verb: verb, Key: key, Value: value, Index: index}}
}

// write makes the operations of one write, at an index if that is demanded.
func (s *Store) write(w store.Write, at *uint64) api.TxnOps {
	key := s.keys.record(w.Key)
	switch {
	case at == nil && w.Data == nil:
		return api.TxnOps{kvOp(api.KVDelete, key, nil, 0)}
	case at == nil:
		return api.TxnOps{kvOp(api.KVSet, key, w.Data, 0)}
	case w.Data != nil:
		return api.TxnOps{kvOp(api.KVCAS, key, w.Data, *at)}
	case *at == 0:
		return api.TxnOps{kvOp(api.KVCheckNotExists, key, nil, 0)}
	}
	return api.TxnOps{kvOp(api.KVDeleteCAS, key, nil, *at)}
}

func (s *Store) check(key store.Key, at uint64) *api.TxnOp {
	if at == 0 {
		return kvOp(api.KVCheckNotExists, s.keys.record(key), nil, 0)
	}
	return kvOp(api.KVCheckIndex, s.keys.record(key), nil, at)
}

// note remembers what feed and manifest must say of a write.
func (c *commit) note(w store.Write, r store.Record) {
	if !inFeed(w.Key.Kind) {
		return
	}
	k := changedKey{key: w.Key}
	if w.Data != nil {
		k.tag = tag(w.Data)
	}
	c.fed = append(c.fed, k)
	if w.Key.Kind != store.KindIssued {
		return
	}
	c.issued[w.Key.Name] = nil
	if cert, ok := r.(*store.Certificate); ok {
		c.issued[w.Key.Name] = &Summary{cert.Fingerprint, cert.NotAfter.UTC(), k.tag}
	}
}

// size is how many bytes of JSON operations take, at most.
func size(ops api.TxnOps) int {
	n := 2
	for _, op := range ops {
		n += 160 + len(op.KV.Key) + base64.StdEncoding.EncodedLen(len(op.KV.Value))
	}
	return n
}

// direct makes a transaction of one commit that needs no lease.
func (s *Store) direct(c *commit) error {
	if len(c.ops) == 0 {
		return nil
	}
	_, refused, err := s.c.txn(c.ctx, c.ops)
	switch {
	case errors.Is(err, errNotDone):
		return notWritten(err)
	case err != nil:
		return fmt.Errorf("%w: %w", store.ErrUnknown, err)
	case len(refused) > 0:
		return refusal(c.ops, refused)
	}
	return nil
}

// notWritten is a refusal for an error before, or in place of, a write; it says when the fault is that Consul was out of reach.
func notWritten(err error) error {
	if errors.Is(err, errUnreached) {
		return store.Refusedf("%w: %w", store.ErrStorage, err)
	}
	return store.Refusedf("%w", err)
}

// refusal says why Consul refused a transaction.
func refusal(ops api.TxnOps, refused api.TxnErrors) error {
	var errs []error
	for _, e := range refused {
		if e.OpIndex < 0 || e.OpIndex >= len(ops) {
			errs = append(errs, errors.New(e.What))
			continue
		}
		errs = append(errs, opError(ops[e.OpIndex].KV, e.What))
	}
	return store.Refusedf("%w", errors.Join(errs...))
}

func opError(op *api.KVTxnOp, what string) error {
	switch op.Verb {
	case api.KVCAS, api.KVDeleteCAS, api.KVCheckIndex, api.KVCheckNotExists:
		if !isForbidden(what) {
			return fmt.Errorf("%s changed since it was read", op.Key)
		}
	}
	if isForbidden(what) {
		return fmt.Errorf("write %s: %w: give the token the policy of its role, see haproxy-conf/consul", op.Key, errForbidden)
	}
	return fmt.Errorf("write %s: %s", op.Key, what)
}
