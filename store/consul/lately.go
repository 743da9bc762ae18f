package consul

import (
	"context"
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
	err    error
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
		r.pair, r.err = read()
		close(r.done)
		time.AfterFunc(latelyFor, func() { l.forget(key, r) })
		return r.pair, r.err
	}
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.done:
	}
	if r.err != nil || r.pair == nil {
		return read()
	}
	return r.pair, nil
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
	return s.seen.told[key]
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
		s.seen.told = map[store.Key]string{}
	}
	for _, c := range f.Changes[from:] {
		for _, text := range c.Keys {
			if k, ok := parseChanged(text); ok {
				s.seen.told[k.key] = c.ID
			}
		}
	}
	s.seen.last = f.last()
}
