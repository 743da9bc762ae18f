package consul

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// latelyFor is how long a record that the feed announced is handed to others in this process: index, copy and HAProxy's
// turn ask for it at the same moment.
const latelyFor = time.Second

// lately is what was read of what the feed announced.
type lately struct {
	mu    sync.Mutex
	reads map[store.Key]*lateRead
}

// lateRead is one read, which began after its change had been announced.
type lateRead struct {
	change string
	done   chan struct{}
	pair   *api.KVPair // nil when there is none or the read failed
}

// get reads a key, or takes part in the read of another caller who had heard of the same change.
func (l *lately) get(ctx context.Context, key store.Key, change string, read func() (*api.KVPair, error)) (*api.KVPair, error) {
	l.mu.Lock()
	r := l.reads[key]
	if r == nil || r.change != change {
		r = &lateRead{change: change, done: make(chan struct{})}
		if l.reads == nil {
			l.reads = map[store.Key]*lateRead{}
		}
		l.reads[key] = r
		l.mu.Unlock()
		pair, err := read()
		l.end(key, r, pair)
		return pair, err
	}
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.done:
	}
	if r.pair == nil {
		return read()
	}
	return r.pair, nil
}

// claim begins reads of those keys that nobody reads yet. Each must be ended.
func (l *lately) claim(changes map[store.Key]string) map[store.Key]*lateRead {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads == nil {
		l.reads = map[store.Key]*lateRead{}
	}
	mine := map[store.Key]*lateRead{}
	for key, change := range changes {
		if r := l.reads[key]; r == nil || r.change != change {
			mine[key] = &lateRead{change: change, done: make(chan struct{})}
			l.reads[key] = mine[key]
		}
	}
	return mine
}

// end hands out what was read; nil for nothing that counts.
func (l *lately) end(key store.Key, r *lateRead, pair *api.KVPair) {
	r.pair = pair
	close(r.done)
	time.AfterFunc(latelyFor, func() { l.forget(key, r) })
}

// prefetch reads together what a follower is about to get one by one.
func (s *Store) prefetch(ctx context.Context, keys []store.Key) {
	if len(keys) < 2 || s.leading.Load() {
		return
	}
	changes := map[store.Key]string{}
	for _, k := range keys {
		if change := s.announced(k); change != "" && k.Kind != kindForeign {
			changes[k] = change
		}
	}
	mine := s.lately.claim(changes)
	for part := range slices.Chunk(slices.Collect(maps.Keys(mine)), fetchAtOnce) {
		pairs, err := s.getMany(ctx, part)
		for _, k := range part {
			pair := pairs[k]
			if err != nil || pair != nil && pair.ModifyIndex < s.floor(k) {
				pair = nil // whoever wants it reads it
			}
			s.lately.end(k, mine[k], pair)
		}
	}
}

func (l *lately) forget(key store.Key, r *lateRead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads[key] == r {
		delete(l.reads, key)
	}
}

// announced returns the id of the last change of a key that the feed told of, "" when that is not known.
func (s *Store) announced(key store.Key) string {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.told[key].id
}

// toldChange is what the feed says of the last change of a key.
type toldChange struct {
	id  string
	tag string // of the value; empty for none
}

// met notes whether a read found what the feed had told. When it did not, and the store gets that value back, the feed has nothing new
// to tell: whoever compares must not take it for known.
func (s *Store) met(key store.Key, p *api.KVPair) {
	found := ""
	if p != nil {
		found = tag(p.Value)
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	change, ok := s.seen.told[key]
	switch {
	case !ok:
	case change.tag == found:
		delete(s.seen.unmet, key)
	case s.seen.unmet == nil:
		s.seen.unmet = map[store.Key]bool{key: true}
	default:
		s.seen.unmet[key] = true
	}
}

// unmet returns the keys that were told of and not found.
func (s *Store) unmet() map[store.Key]bool {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return maps.Clone(s.seen.unmet)
}

// hear notes which changes a feed tells of that were not known. s.seen.mu is held.
func (s *Store) hear(f feedState) {
	from := 0
	for i, c := range f.Changes {
		if c.Seq == s.seen.last.Seq && c.ID == s.seen.last.ID {
			from = i + 1
		}
	}
	if from == 0 || len(s.seen.told) > 10_000 {
		s.seen.told = nil // what else has changed is not known
	}
	if s.seen.told == nil {
		s.seen.told = map[store.Key]toldChange{}
	}
	for _, c := range f.Changes[from:] {
		for _, text := range c.Keys {
			if k, ok := parseChanged(text); ok {
				s.seen.told[k.key] = toldChange{c.ID, k.tag}
			}
		}
	}
	s.seen.last = f.last()
}
