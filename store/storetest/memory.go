// Package storetest is for tests of and with stores: the conformance suite that every store passes, a store in
// memory with faults to inject, and certificates of every sort. It does no real I/O of its own.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Outcome is how a commit of Memory goes.
type Outcome int

// The outcomes. A caller can't tell Stored from Lost.
const (
	Done    Outcome = iota // as a commit goes
	Refused                // refused, nothing is stored
	Stored                 // reported as unknown, but stored (if its preconditions hold)
	Lost                   // reported as unknown, nothing is stored
)

// Fault is what Memory does to one commit. The zero Fault does nothing.
type Fault struct {
	Outcome Outcome
	// Stall is how long the commit takes. A Stored one is stored before, a Done one after the stall. When the caller's
	// context ends earlier, the outcome is unknown.
	Stall time.Duration
}

// Memory is a store in memory that keeps the whole contract. It does no I/O, and time only passes in it by
// package time, so it works in a bubble of testing/synctest.
type Memory struct {
	store.Solo
	store.Feed

	// OnCommit, if set, decides the fate of every commit that is not refused for itself. n counts from 1. It runs
	// without locks and may end leases.
	OnCommit func(n int, ops []store.Op) Fault
	// OnRead, if set, may make a Get or (with an empty name) a List fail.
	OnRead func(store.Key) error
	// AckAll makes every Barrier pass.
	AckAll bool

	sealer  store.Sealer
	mu      sync.Mutex
	records map[store.Key]stored
	last    uint64 // revision
	commits int
}

type stored struct {
	data     []byte
	revision uint64
}

var _ store.Store = (*Memory)(nil)

// NewMemory returns an empty store whose only node is "memory". Fields are set before it is used.
func NewMemory() *Memory {
	m := &Memory{sealer: store.Plain{}, records: map[store.Key]stored{}}
	m.Node = "memory"
	return m
}

// Get implements store.Store.
func (m *Memory) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	if err := m.readable(ctx, key); err != nil {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	m.mu.Lock()
	s, ok := m.records[key]
	m.mu.Unlock()
	if !ok {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, store.ErrAbsent)
	}
	return m.entry(key, s)
}

func (m *Memory) readable(ctx context.Context, key store.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.OnRead != nil {
		return m.OnRead(key)
	}
	return nil
}

func (m *Memory) entry(key store.Key, s stored) (store.Entry, error) {
	e := store.Entry{Key: key, Revision: revision(s.revision)}
	var err error
	e.Record, err = store.Decode(key, s.data, m.sealer)
	return e, err
}

func revision(n uint64) store.Revision {
	if n == 0 {
		return ""
	}
	return store.Revision(strconv.FormatUint(n, 36))
}

// List implements store.Store.
func (m *Memory) List(ctx context.Context, kind store.Kind) (store.Listing, error) {
	if err := m.readable(ctx, store.Key{Kind: kind}); err != nil {
		return store.Listing{}, fmt.Errorf("list %s: %w", kind, err)
	}
	if !slices.Contains(store.Kinds(), kind) {
		return store.Listing{}, fmt.Errorf("list %s: unknown kind", kind)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var list store.Listing
	for key, s := range m.records {
		if key.Kind != kind {
			continue
		}
		if e, err := m.entry(key, s); err != nil {
			list.Unreadable = append(list.Unreadable, err)
		} else {
			list.Entries = append(list.Entries, e)
		}
	}
	slices.SortFunc(list.Entries, func(a, b store.Entry) int { return cmp.Compare(a.Key.Name, b.Key.Name) })
	slices.SortFunc(list.Unreadable, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return list, nil
}

// Commit implements store.Store.
func (m *Memory) Commit(ctx context.Context, lease store.Lease, pre []store.Precondition, ops []store.Op) error {
	if err := ctx.Err(); err != nil {
		return store.Refusedf("%w", err)
	}
	writes, err := store.EncodeCommit(lease, pre, ops, m.sealer)
	if err != nil {
		return err
	}
	fault := m.fault(ops)
	switch fault.Outcome {
	case Refused:
		return cmp.Or(sleep(ctx, fault.Stall, store.ErrRefused), store.Refusedf("injected"))
	case Stored:
		if err := m.apply(lease, pre, writes); err != nil {
			return err
		}
		fallthrough
	case Lost:
		return cmp.Or(sleep(ctx, fault.Stall, store.ErrUnknown), fmt.Errorf("%w: injected", store.ErrUnknown))
	}
	if err := sleep(ctx, fault.Stall, store.ErrUnknown); err != nil {
		return err
	}
	return m.apply(lease, pre, writes)
}

func (m *Memory) fault(ops []store.Op) Fault {
	m.mu.Lock()
	m.commits++
	n := m.commits
	m.mu.Unlock()
	if m.OnCommit == nil {
		return Fault{}
	}
	return m.OnCommit(n, slices.Clone(ops))
}

// sleep returns an error that wraps kind when ctx ends before d has passed.
func sleep(ctx context.Context, d time.Duration, kind error) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", kind, ctx.Err())
	}
}

func (m *Memory) apply(lease store.Lease, pre []store.Precondition, writes []store.Write) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.Holds(lease); err != nil {
		return err
	}
	demanded := map[store.Key]bool{}
	for _, p := range pre {
		if have := revision(m.records[p.Key].revision); have != p.Revision {
			return store.Refusedf("%s changed since it was read", p.Key)
		}
		demanded[p.Key] = true
	}
	for _, w := range writes {
		if s, ok := m.records[w.Key]; ok && !demanded[w.Key] {
			if _, err := m.entry(w.Key, s); err != nil {
				return store.Refusedf("%w", err)
			}
		}
	}
	m.put(writes...)
	return nil
}

// put is called with m.mu held. Followers hear of all of it together.
func (m *Memory) put(writes ...store.Write) {
	var changed []store.Key
	for _, w := range writes {
		old, ok := m.records[w.Key]
		if ok == (w.Data != nil) && bytes.Equal(old.data, w.Data) {
			continue
		}
		m.last++
		if w.Data == nil {
			delete(m.records, w.Key)
		} else {
			m.records[w.Key] = stored{bytes.Clone(w.Data), m.last}
		}
		changed = append(changed, w.Key)
	}
	if len(changed) > 0 {
		m.Announce(changed...)
	}
}

// Edit is a foreign edit: it replaces what is stored under a key, valid or not; nil deletes it.
func (m *Memory) Edit(key store.Key, data []byte) { m.EditAll(store.Write{Key: key, Data: data}) }

// EditAll is several edits at once.
func (m *Memory) EditAll(writes ...store.Write) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(writes...)
}

// Raw returns what is stored under a key, nil when there is nothing.
func (m *Memory) Raw(key store.Key) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.records[key].data)
}

// Snapshot returns a function that puts the store back into its present state, as a restore would.
func (m *Memory) Snapshot() (restore func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	saved := map[store.Key][]byte{}
	for k, s := range m.records {
		saved[k] = s.data
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		var writes []store.Write
		for k := range m.records {
			if saved[k] == nil {
				writes = append(writes, store.Write{Key: k})
			}
		}
		for k, data := range saved {
			writes = append(writes, store.Write{Key: k, Data: data})
		}
		m.put(writes...)
	}
}

// Barrier implements store.Store.
func (m *Memory) Barrier(ctx context.Context, generation uint64) ([]string, error) {
	if m.AckAll {
		return nil, nil
	}
	return m.Solo.Barrier(ctx, generation)
}

// Close ends the lease and every Follow.
func (m *Memory) Close() error {
	m.Solo.Close(errors.New("the store was closed"))
	m.Feed.Close()
	return nil
}
