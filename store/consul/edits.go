package consul

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// quiet is how long there must have been no edit before what others wrote is compared.
const quiet = time.Second

// maxSeen is after how many changes in a row a comparison is made in any case: more than recent remembers.
const maxSeen = 512

// recent remembers the indexes of the leader's own last transactions.
type recent struct {
	mu      sync.Mutex
	indexes [1024]uint64
	next    int
}

func (r *recent) add(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.indexes[r.next] = index
	r.next = (r.next + 1) % len(r.indexes)
}

func (r *recent) has(index uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.indexes[:], index)
}

// all reports whether nothing but the leader's own transactions changed anything.
func (r *recent) all(indexes map[uint64]bool) bool {
	for i := range indexes {
		if !r.has(i) {
			return false
		}
	}
	return true
}

// watchEdits announces what others wrote below a kind that the feed tells of. It wakes with a few bytes however many
// records there are, and reads them only when the change was not the leader's own.
func (s *Store) watchEdits(l *leaseTerm, kind store.Kind) {
	seen := map[uint64]bool{} // indexes at which something changed since the last comparison
	timer := time.NewTimer(0)
	defer timer.Stop()
	wake := make(chan uint64)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.wakeOnEdits(l.ctx, kind, wake) })
	known := map[store.Key]string{}
	started, failing := false, streak{c: s.c}
	for {
		select {
		case <-l.ctx.Done():
			return
		case index := <-wake:
			if len(seen) < maxSeen {
				seen[index] = true
			}
			timer.Reset(quiet)
			continue
		case <-timer.C:
		}
		if started && l.own.all(seen) && len(seen) < maxSeen {
			clear(seen)
			continue
		}
		now, err := s.compareEdits(l, kind, known, !started)
		if err != nil {
			if l.ctx.Err() == nil {
				failing.failed("can't compare what others wrote, trying again", err)
			}
			timer.Reset(10 * time.Second)
			continue
		}
		failing.over("comparing what others wrote again")
		known, started = now, true
		clear(seen)
	}
}

func (s *Store) wakeOnEdits(ctx context.Context, kind store.Kind, wake chan uint64) {
	dir := strings.TrimSuffix(s.keys.dir(string(kind)), "/") // without the slash the answer is one line
	var last uint64
	read := func(ctx context.Context, index uint64) (uint64, uint64, error) {
		_, index, err := s.c.names(ctx, dir, "/", index)
		return index, index, err
	}
	watch(ctx, s.c, "edits of "+string(kind), read, func(index uint64) bool {
		news := index != last && last != 0
		last = index
		if news {
			select {
			case wake <- index:
			case <-ctx.Done():
			}
		}
		return news
	})
}

// compareEdits announces the records whose values are not as known, and corrects the manifest. What was issued is
// compared with the manifest itself, at first by names only.
func (s *Store) compareEdits(l *leaseTerm, kind store.Kind, known map[store.Key]string, first bool) (map[store.Key]string, error) {
	switch {
	case kind == store.KindIssued:
		return nil, s.compareIssued(l, first)
	case kind == kindForeign:
		var err error
		if known, err = s.foreignManifest(l.ctx); err != nil {
			return nil, err
		}
	}
	dir := s.keys.dir(string(kind))
	pairs, _, err := s.c.list(l.ctx, dir, 0)
	if err != nil {
		return nil, err
	}
	now := map[store.Key]string{}
	for _, p := range pairs {
		if name, ok := nameBelow(dir, p.Key); ok && p.Flags != classicFlag {
			now[store.Key{Kind: kind, Name: name}] = tag(p.Value)
		}
	}
	if first && kind != kindForeign || maps.Equal(known, now) {
		return now, nil
	}
	return now, s.announce(l, kind, known, now)
}

// announce commits what the feed must tell, and for the certificates of others what was told.
func (s *Store) announce(l *leaseTerm, kind store.Kind, known, now map[store.Key]string) error {
	c := &commit{ctx: l.ctx, result: make(chan error, 1)}
	for k, t := range now {
		if known[k] != t {
			c.fed = append(c.fed, changedKey{k, t})
		}
	}
	for k := range known {
		if _, ok := now[k]; !ok {
			c.fed = append(c.fed, changedKey{key: k})
		}
	}
	if kind == kindForeign {
		index := foreignIndex{Version: 1, Tags: map[string]string{}}
		for k, t := range now {
			index.Tags[k.Name] = t
		}
		value, err := json.Marshal(index)
		if err != nil {
			return err
		}
		c.ops = api.TxnOps{kvOp(api.KVSet, s.keys.dir("manifest")+string(kindForeign), value, 0)}
	}
	return s.tell(l, kind, c)
}

// maxTold is how many keys one commit tells of: more would not fit the feed, and the manifest's parts not the
// transaction.
const maxTold = 16

// tell commits what was found, in parts.
func (s *Store) tell(l *leaseTerm, kind store.Kind, all *commit) error {
	s.log.Info("records were changed by someone else", "kind", string(kind), "count", len(all.fed))
	for part := range slices.Chunk(all.fed, maxTold) {
		c := &commit{ctx: l.ctx, ops: all.ops, fed: part, issued: map[string]*Summary{}, result: make(chan error, 1)}
		for _, k := range part {
			if sum, ok := all.issued[k.key.Name]; ok {
				c.issued[k.key.Name] = sum
			}
		}
		if err := l.writer.do(c); err != nil {
			return err
		}
	}
	return nil
}

// compareIssued corrects the manifest where it does not say what is issued. At the start of a term names are compared, and
// values when some were written after the last transaction of the term before: nobody was there to see it.
func (s *Store) compareIssued(l *leaseTerm, first bool) error {
	manifest, err := s.Manifest(l.ctx)
	if err != nil {
		return err
	}
	dir := s.keys.dir(string(store.KindIssued))
	if first {
		_, last, err := s.c.names(l.ctx, strings.TrimSuffix(dir, "/"), "/", 0)
		if err != nil {
			return err
		}
		first = last <= l.before || l.own.has(last)
	}
	if first {
		same, err := s.sameNames(l.ctx, dir, manifest)
		if same || err != nil {
			return err
		}
	}
	pairs, _, err := s.c.list(l.ctx, dir, 0)
	if err != nil {
		return err
	}
	c := &commit{ctx: l.ctx, issued: map[string]*Summary{}, result: make(chan error, 1)}
	note := func(name, tag string, sum *Summary) {
		c.fed = append(c.fed, changedKey{store.Key{Kind: store.KindIssued, Name: name}, tag})
		c.issued[name] = sum
	}
	for _, p := range pairs {
		name, ok := nameBelow(dir, p.Key)
		t := tag(p.Value)
		if ok && manifest[name].Tag != t {
			note(name, t, summarize(p.Value, t))
		}
		delete(manifest, name)
	}
	for name := range manifest {
		note(name, "", nil)
	}
	return s.tell(l, store.KindIssued, c)
}

func (s *Store) sameNames(ctx context.Context, dir string, manifest map[string]Summary) (bool, error) {
	keys, _, err := s.c.names(ctx, dir, "", 0)
	if err != nil {
		return false, err
	}
	count := 0
	for _, key := range keys {
		name, ok := nameBelow(dir, key)
		if !ok {
			continue
		}
		if _, known := manifest[name]; !known {
			return false, nil
		}
		count++
	}
	return count == len(manifest), nil
}

// summarize reads what the manifest needs without opening anything. It is empty for what can't be read.
func summarize(value []byte, t string) *Summary {
	var c struct {
		Fingerprint string    `json:"fingerprint"`
		NotAfter    time.Time `json:"not_after"`
	}
	_ = json.Unmarshal(value, &c) //nolint:errcheck // then nothing is known of it
	return &Summary{c.Fingerprint, c.NotAfter, t}
}
