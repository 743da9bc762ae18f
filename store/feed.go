package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// maxFeedKeys is how many changed keys a slow follower is told one by one.
const maxFeedKeys = 10_000

// Feed tells followers which keys changed: a store announces, and offers Follow as its own. The zero Feed is ready.
type Feed struct {
	mu        sync.Mutex
	followers map[*follower]bool
	closed    bool
}

// follower collects what its callback has not been told yet.
type follower struct {
	kinds []Kind
	wake  chan struct{} // holds one token while something is pending
	keys  map[Key]bool  // guarded by Feed.mu, like all
	all   bool
}

// Announce says that the records under keys may have changed; with no keys, that any may have. It does not block.
func (f *Feed) Announce(keys ...Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.followers {
		w.add(keys)
	}
}

func (w *follower) add(keys []Key) {
	before := len(w.keys)
	for _, k := range keys {
		if len(w.kinds) == 0 || slices.Contains(w.kinds, k.Kind) {
			w.keys[k] = true
		}
	}
	if len(keys) == 0 || len(w.keys) > maxFeedKeys {
		w.all = true
		clear(w.keys)
	}
	if w.all || len(w.keys) > before {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Follow implements Store. With no kinds it follows all.
func (f *Feed) Follow(ctx context.Context, changed func(keys []Key), kinds ...Kind) error {
	w := &follower{kinds: kinds, wake: make(chan struct{}, 1), keys: map[Key]bool{}}
	if !f.register(w) {
		return errors.New("follow: the store is closed")
	}
	defer f.drop(w)
	for keys := []Key(nil); ; {
		if ctx.Err() != nil {
			return nil
		}
		changed(keys)
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-w.wake:
			if !open {
				return errors.New("follow: the store was closed")
			}
		}
		keys = f.take(w)
	}
}

func (f *Feed) register(w *follower) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	if f.followers == nil {
		f.followers = map[*follower]bool{}
	}
	f.followers[w] = true
	return true
}

func (f *Feed) drop(w *follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.followers, w)
}

// take returns what is pending, ordered, nil for everything. What came after the wake is taken with it, and so is the wake for
// that: it would find nothing, which must not be mistaken for everything.
func (f *Feed) take(w *follower) []Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-w.wake:
	default:
	}
	all := w.all
	keys := slices.SortedFunc(maps.Keys(w.keys), compareKeys)
	w.all = false
	clear(w.keys)
	if all {
		return nil
	}
	return keys
}

// Close ends every Follow with an error. Announce does nothing afterwards.
func (f *Feed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	for w := range f.followers {
		close(w.wake)
	}
	f.followers = nil
}
