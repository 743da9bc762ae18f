package consul

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// tableWatch relates the watch of challenges to what the callback of Follow has done about it: when nothing is left to
// handle, the token table is as new as the epoch in which the watch's last read began, and the node may say so.
type tableWatch struct {
	mu      sync.Mutex
	reading string // epoch when the last read began
	pending bool   // announced, not handed to the callback yet
	busy    bool   // the callback runs
	during  string // epoch that holds once the callback has returned
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
			return nil, 0, err
		}
		s.member.tableRead(began, highest(pairs))
		t.mu.Lock()
		t.reading = began
		t.mu.Unlock()
		return revisions(pairs), next, nil
	}
}

// highest returns the highest generation of stored challenges.
func highest(pairs api.KVPairs) uint64 {
	var high uint64
	for _, p := range pairs {
		var c struct {
			Generation uint64 `json:"generation"`
		}
		if json.Unmarshal(p.Value, &c) == nil {
			high = max(high, c.Generation)
		}
	}
	return high
}

// announced notes that there are differences, before they are announced.
func (t *tableWatch) announced(kind store.Kind) {
	if kind != store.KindChallenges {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending = true
}

// unchanged is called after every read, its differences announced.
func (t *tableWatch) unchanged(s *Store, kind store.Kind) {
	if kind != store.KindChallenges {
		return
	}
	t.mu.Lock()
	idle, epoch := !t.pending && !t.busy, t.reading
	t.during = epoch
	t.mu.Unlock()
	if idle {
		s.member.tableIs(epoch)
	}
}

// handling is called before the callback, handled after it.
func (t *tableWatch) handling() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending, t.busy = false, true
}

func (t *tableWatch) handled(s *Store) {
	t.mu.Lock()
	t.busy = false
	idle, epoch := !t.pending, t.during
	t.mu.Unlock()
	if idle && epoch != "" {
		s.member.tableIs(epoch)
	}
}
