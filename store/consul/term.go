package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/seal"
)

// begin reads what the leader must know, after the lock was won, and writes the first transaction of the term: a new
// epoch, so that nothing that was acked before counts, and what a fleet has for ever.
func (l *leaseTerm) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ttl)
	defer cancel()
	w := l.writer
	fence, _, err := l.s.c.getConsistent(ctx, l.s.keys.fence())
	if err != nil {
		return err
	}
	if fence != nil {
		w.fence = fence.ModifyIndex
		l.before = fence.ModifyIndex
	}
	if err := l.readFeed(ctx); err != nil {
		return err
	}
	if w.manifest, err = l.s.manifest(ctx); err != nil {
		return err
	}
	fleet, meta, err := l.meta(ctx)
	if err != nil {
		return err
	}
	if err := l.s.canOpen(ctx); err != nil {
		return err
	}
	missing, err := l.s.missingSentinels(ctx)
	if err != nil {
		return err
	}
	if err := l.first(ctx, append(meta, missing...)); err != nil {
		return err
	}
	l.s.setFleet(fleet)
	return nil
}

// readFeed reads the feed that goes on in this term, or begins a new one.
func (l *leaseTerm) readFeed(ctx context.Context) error {
	p, _, err := l.s.c.getConsistent(ctx, l.s.keys.feed())
	if err != nil {
		return err
	}
	f, err := parseFeed(p)
	if err != nil {
		f.index = p.ModifyIndex // written over
	}
	l.writer.feed = f
	l.s.seen.mu.Lock()
	defer l.s.seen.mu.Unlock()
	if f.Seq < l.s.seen.seq { // the watch may hear of it a minute later
		l.s.seen.jumped = time.Now()
	}
	return nil
}

// meta returns the fleet's id and what must be written about the fleet itself, if anything.
func (l *leaseTerm) meta(ctx context.Context) (fleet string, ops api.TxnOps, err error) {
	m, err := l.s.readMeta(ctx)
	if err != nil {
		return "", nil, err
	}
	write := m == nil
	if m == nil {
		m = &metaRecord{Version: 1, Fleet: l.s.keptFleet(), Created: time.Now().UTC().Round(time.Second)}
		if m.Fleet == "" {
			m.Fleet = randomID(8)
		}
		if err := l.s.opensWith(ctx, m.Fleet); err != nil {
			return "", nil, err
		}
	}
	if dc := l.s.c.addr.dc; dc != "" && m.Datacenter == "" {
		m.Datacenter, write = dc, true
	} else if dc != "" && m.Datacenter != dc {
		return "", nil, fmt.Errorf("%w: the fleet lives in datacenter %s, not in %s: correct dc= in SPOACME_STORE", errUnfit, m.Datacenter, dc)
	}
	changed, err := l.s.agreeOnCAs(ctx, m)
	if err != nil {
		return "", nil, err
	}
	if !write && !changed {
		return m.Fleet, nil, nil
	}
	value, err := json.Marshal(m)
	return m.Fleet, api.TxnOps{kvOp(api.KVSet, l.s.keys.meta(), value, 0)}, err
}

// canOpen looks whether accounts and open orders can be opened: who lacks the key would place other ones.
func (s *Store) canOpen(ctx context.Context) error {
	for _, kind := range []store.Kind{store.KindAccount, store.KindOrder} {
		list, err := s.List(ctx, kind)
		if err != nil {
			return err
		}
		for _, err := range list.Unreadable {
			if errors.Is(err, seal.ErrNoKey) {
				return fmt.Errorf("%w: it lacks a sealing key of the fleet: %w", errUnfit, err)
			}
		}
	}
	return nil
}

// samples is of how many records of a kind it is seen with which fleet's id they are sealed.
const samples = 10

// opensWith looks whether an id is that of the fleet whose records are here: a leader that gave them another one would make
// all of them unreadable, on all nodes.
func (s *Store) opensWith(ctx context.Context, fleet string) error {
	if s.cfg.Keys == nil || s.cfg.Plain {
		return nil
	}
	opener, sealed := s.cfg.Keys.Sealer(fleet, s.usable), 0
	for _, kind := range []store.Kind{store.KindAccount, store.KindOrder, store.KindIssued} {
		keys, _, err := s.c.names(ctx, s.keys.dir(string(kind)), "", 0)
		if err != nil {
			return err
		}
		for _, key := range keys[:min(len(keys), samples)] {
			name, ok := nameBelow(s.keys.dir(string(kind)), key)
			if !ok {
				continue
			}
			p, _, err := s.c.get(ctx, key, 0)
			if err != nil {
				return err
			}
			if p == nil || !slices.Contains(s.cfg.Keys.IDs(), s.cfg.Keys.KeyOf(kind, privateOf(p.Value))) {
				continue
			}
			if _, err := entry(store.Key{Kind: kind, Name: name}, p, opener); err == nil {
				return nil
			}
			sealed++
		}
	}
	if sealed > 0 {
		return fmt.Errorf("%w: %s is gone or damaged, and what is sealed here has another fleet's id than this node knows: start a sidecar "+
			"whose state directory has the id (its file \"fleet\"), or copy that file here; if it is on no machine any more, use another "+
			"prefix in SPOACME_STORE", errUnfit, s.keys.meta())
	}
	return nil
}

// privateOf is the sealed part of a record, empty when there is none.
func privateOf(value []byte) string {
	var r struct {
		Private string `json:"private"`
	}
	_ = json.Unmarshal(value, &r) //nolint:errcheck // then there is none
	return r.Private
}

func (s *Store) missingSentinels(ctx context.Context) (api.TxnOps, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ops api.TxnOps
	var errs []error
	for _, key := range s.keys.sentinels() {
		wg.Go(func() {
			p, _, err := s.c.get(ctx, key, 0)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else if p == nil {
				ops = append(ops, kvOp(api.KVSet, key, []byte("keeps this prefix from being empty\n"), 0))
			}
		})
	}
	wg.Wait()
	return ops, errors.Join(errs...)
}

// first makes the first transaction of the term.
func (l *leaseTerm) first(ctx context.Context, more api.TxnOps) error {
	w := l.writer
	id := randomID(6)
	next := w.feed.feedRecord
	next.Epoch = l.epoch
	next = next.next(id, nil)
	ops := append(w.proof(id), kvOp(api.KVCAS, l.s.keys.feed(), next.encode(), w.feed.index))
	results, refused, err := l.s.c.txn(ctx, append(ops, more...))
	if err != nil {
		return err
	}
	if refused != nil {
		return fmt.Errorf("begin a term: %w", refusal(ops, refused))
	}
	w.done(&batch{feed: &next}, fenceIndex(results, l.s.keys.fence()))
	return nil
}

// lookAfter does what the leader does beside writing, until the term ends: it compares the manifest with what is
// issued, sees edits by others, and keeps count of the keys that all nodes have.
func (s *Store) lookAfter(l *leaseTerm) {
	var wg sync.WaitGroup
	wg.Go(func() { s.watchEdits(l, store.KindIssued) })
	wg.Go(func() { s.watchEdits(l, store.KindWanted) })
	wg.Go(func() { s.watchEdits(l, kindForeign) })
	wg.Go(func() { s.watchNodes(l) })
	wg.Wait()
}

// nameBelow is the last part of a key of dir.
func nameBelow(dir, key string) (string, bool) {
	name, ok := strings.CutPrefix(key, dir)
	return name, ok && name != "" && name != sentinel && !strings.Contains(name, "/")
}
