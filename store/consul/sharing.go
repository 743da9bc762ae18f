package consul

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// sharing is how long a listing is handed to others in this process. At a start four ask for the same one.
const sharing = 10 * time.Second

// sharedList is a prefix that the feed tells of, as it was read while the feed was at an index: with the feed still there
// it is what is stored, or the feed is about to tell.
type sharedList struct {
	reading turn // one reads at a time, the second one finds what the first one read
	mu      sync.Mutex
	pairs   api.KVPairs
	feed    uint64
	drop    *time.Timer
}

// turn is a lock that is held while Consul is asked: who waits for it gives up when his ctx ends. The zero turn is free.
type turn struct {
	once sync.Once
	free chan struct{}
}

func (t *turn) take(ctx context.Context) error {
	t.once.Do(func() { t.free = make(chan struct{}, 1) })
	select {
	case t.free <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) give() { <-t.free }

// listShared lists a prefix that the feed tells of. The leader always reads: it decides on what is there.
func (s *Store) listShared(ctx context.Context, l *sharedList, dir string) (api.KVPairs, error) {
	if err := l.reading.take(ctx); err != nil {
		return nil, err
	}
	defer l.reading.give()
	feed := s.feedIndex()
	if pairs, ok := l.get(feed); ok && !s.leading.Load() {
		return pairs, nil
	}
	pairs, _, err := s.c.list(ctx, dir, 0)
	if err != nil {
		return nil, err
	}
	l.put(pairs, feed)
	return pairs, nil
}

// get returns what was read while the feed was at an index that is known.
func (l *sharedList) get(feed uint64) (api.KVPairs, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pairs, l.feed != 0 && l.feed == feed
}

func (l *sharedList) put(pairs api.KVPairs, feed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pairs, l.feed = pairs, feed
	if l.drop != nil {
		l.drop.Stop()
	}
	l.drop = time.AfterFunc(sharing, l.forget)
}

func (l *sharedList) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pairs, l.feed = nil, 0
}

// feedIndex is the index of the feed that was read last, 0 for none.
func (s *Store) feedIndex() uint64 {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.index
}

func (s *Store) listWanted(ctx context.Context) (api.KVPairs, error) {
	return s.listShared(ctx, &s.wantedList, s.keys.dir(string(store.KindWanted)))
}

// sharedManifest is Manifest for those to whom the feed tells the rest.
func (s *Store) sharedManifest(ctx context.Context) (map[string]Summary, error) {
	pairs, err := s.listShared(ctx, &s.manifestList, s.keys.dir("manifest"))
	if err != nil {
		return nil, err
	}
	return joined(s.parseManifest(pairs)), nil
}
