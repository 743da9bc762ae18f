package consul

import (
	"context"
	"encoding/json"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// tableWatch relates the watch of challenges to what the callback of Follow has done about it: when nothing is left to
// handle, the token table is as new as the epoch in which the watch's last read began, and the node may say so.
type tableWatch struct {
	mu      sync.Mutex
	reading string // epoch when the last read began
	pairs   api.KVPairs
	index   uint64
	pending map[store.Key]bool // announced, not handed to the callback yet
	all     bool               // the same of everything
	busy    bool               // the callback runs
	during  string             // epoch that holds once the callback has returned
}

// readTable reads challenges as soon as they are newer than index, or at once when the epoch is newer than the last
// read: then the same tokens may belong to another history.
func (s *Store) readTable(ctx context.Context, t *tableWatch, dir string, index uint64) (map[string]string, uint64, error) {
	for {
		began := s.epoch()
		t.mu.Lock()
		if t.reading != began {
			index = 0
		}
		t.mu.Unlock()
		reading, cancel := context.WithCancel(ctx)
		stop := s.member.onEpoch(began, cancel)
		pairs, next, err := s.c.list(reading, dir, index)
		stop()
		cancel()
		if err != nil {
			if ctx.Err() == nil && s.epoch() != began {
				continue
			}
			s.member.tableLost()
			return nil, 0, err
		}
		s.member.tableRead(began, s.decoded.highest(dir, pairs), next)
		t.mu.Lock()
		t.reading, t.pairs, t.index = began, pairs, next
		t.mu.Unlock()
		return revisions(pairs), next, nil
	}
}

// decoded is the challenges as they were read last: with 200 orders open most of them are the same in the next read.
type decoded struct {
	mu      sync.Mutex
	entries map[store.Key]store.Entry
}

// highest decodes what is new and returns the highest generation of all, also of what can't be read.
func (d *decoded) highest(dir string, pairs api.KVPairs) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := make(map[store.Key]store.Entry, len(pairs))
	var high uint64
	for _, p := range pairs {
		key := store.Key{Kind: store.KindChallenges, Name: strings.TrimPrefix(p.Key, dir)}
		e, ok := d.entries[key]
		if !ok || e.Revision != revision(p) {
			var err error
			if e, err = checkedEntry(key, p, noKeys{}); err != nil { // there is no secret in it
				high = max(high, generationOf(p.Value))
				continue
			}
		}
		now[key] = e
		high = max(high, e.Record.(*store.Challenges).Generation)
	}
	d.entries = now
	return high
}

func generationOf(value []byte) uint64 {
	var c struct {
		Generation uint64 `json:"generation"`
	}
	_ = json.Unmarshal(value, &c) //nolint:errcheck // then it is none
	return c.Generation
}

// get returns a record that is stored as it was read last. It must not be changed.
func (d *decoded) get(key store.Key, p *api.KVPair) (store.Entry, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[key]
	return e, ok && e.Revision == revision(p)
}

// announced notes that there are differences, before they are announced; no keys are all.
func (t *tableWatch) announced(s *Store, kind store.Kind, keys []store.Key) {
	if kind != store.KindChallenges {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending == nil {
		t.pending = map[store.Key]bool{}
	}
	t.all = t.all || len(keys) == 0
	for _, k := range keys {
		t.pending[k] = true
	}
	s.fresh.put(t.pairs, t.index)
}

// idle reports whether nothing is left to handle. t.mu is held.
func (t *tableWatch) idle() bool { return !t.busy && !t.all && len(t.pending) == 0 }

// unchanged is called after every read, its differences announced.
func (t *tableWatch) unchanged(s *Store, kind store.Kind) {
	if kind != store.KindChallenges {
		return
	}
	t.mu.Lock()
	idle, epoch := t.idle(), t.reading
	t.during = epoch
	t.mu.Unlock()
	if idle {
		s.member.tableIs(epoch)
	}
}

// handling is called before the callback, handled after it.
func (t *tableWatch) handling(keys []store.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = true
	for _, k := range keys {
		delete(t.pending, k)
	}
	if keys == nil {
		t.all = false
		clear(t.pending)
	}
}

func (t *tableWatch) handled(s *Store) {
	t.mu.Lock()
	t.busy = false
	idle, epoch := t.idle(), t.during
	if idle {
		s.fresh.drop()
	}
	t.mu.Unlock()
	if idle && epoch != "" {
		s.member.tableIs(epoch)
	}
}

// freshTable is the challenges as the watch has just read them, for the List that its news brings about: all nodes read
// at the same moment then, and half of the reads would tell them what they know.
type freshTable struct {
	mu        sync.Mutex
	pairs     api.KVPairs
	index     uint64
	read      bool
	committed uint64 // index of this process's own last transaction
}

func (f *freshTable) put(pairs api.KVPairs, index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs, f.index, f.read = pairs, index, true
}

// drop is called when the news has been handled: a later List is for something else.
func (f *freshTable) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs, f.read = nil, false
}

// take returns what was put, once, if it is not older than the last commit.
func (f *freshTable) take() (api.KVPairs, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ok := f.read && f.index >= f.committed
	pairs := f.pairs
	f.pairs, f.read = nil, false
	return pairs, ok
}

func (f *freshTable) wrote(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.committed = index
}

// lastCommit is the index of this process's last transaction, 0 when there was none.
func (f *freshTable) lastCommit() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.committed
}
