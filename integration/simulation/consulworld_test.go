package simulation

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// What the world sees of Consul, and does to it. As in the server's own file, world.mu is held.

// prefix of all keys.
const prefix = "le/"

// record is the record that a key holds, if it is one.
func record(key string) (store.Key, bool) {
	kind, name, ok := strings.Cut(strings.TrimPrefix(key, prefix), "/")
	k := store.Key{Kind: store.Kind(kind), Name: name}
	return k, ok && slices.Contains(store.Kinds(), k.Kind) && store.ValidName(name) == nil
}

// seeTransaction looks at what is about to be written, as the promises have it.
func (s *server) seeTransaction(p *process, ops api.TxnOps) {
	c := &commit{p: p}
	for _, op := range ops {
		k, ok := record(op.KV.Key)
		if !ok {
			continue
		}
		switch op.KV.Verb {
		case api.KVSet, api.KVCAS:
			r, err := store.Decode(k, op.KV.Value, store.Plain{})
			if err != nil {
				s.w.fail("%s writes %s, which is not readable: %v", p.id, k, err)
				continue
			}
			c.ops = append(c.ops, store.Put(r))
		case api.KVDelete, api.KVDeleteCAS:
			c.ops = append(c.ops, store.Op{Key: k})
		}
	}
	for _, op := range c.ops {
		s.w.seeWrite(c, op)
	}
	if len(c.ops) > 0 && s.w.trace != nil {
		// It is chance in which order commits of one moment share a transaction.
		slices.SortFunc(c.ops, func(a, b store.Op) int { return strings.Compare(a.Key.String(), b.Key.String()) })
		s.w.trace.add("%s commits: %s", p.id, describe(c.ops))
	}
}

// changed keeps the world's picture of records, lock and acks, and wakes who waits.
func (s *server) changed(p *process, key string, pair *api.KVPair) {
	if k, ok := record(key); ok {
		w := store.Write{Key: k}
		if pair != nil {
			w.Data = pair.Value
		}
		s.w.data.EditAll(w)
	}
	s.look(key, pair)
	s.wake(key)
}

// look keeps the world's picture of the lock and of who is live.
func (s *server) look(key string, pair *api.KVPair) {
	w := s.w
	var by *process
	if pair != nil && s.sessions[pair.Session] != nil {
		by = s.sessions[pair.Session].p
	}
	node, isAck := strings.CutPrefix(key, prefix+"ack/")
	switch {
	case isAck && by != nil:
		var said struct {
			Generation uint64 `json:"g"`
			Epoch      string `json:"e"`
		}
		if err := json.Unmarshal(pair.Value, &said); err != nil {
			w.fail("%s acks what can't be read: %v", by.id, err)
		}
		w.acks[node] = ack{by, said.Generation, pair.Session, said.Epoch}
	case isAck:
		delete(w.acks, node)
	case key != prefix+"leader":
	case by == nil && w.holder != nil:
		w.trace.add("store: the lock of %s is free", w.holder.p.id)
		w.holder = nil
	case by != nil && (w.holder == nil || w.holder.session != pair.Session):
		if w.holder = s.terms[pair.Session]; w.holder != nil {
			return // a restore brought it back
		}
		w.terms++
		w.holder = &lease{p: by, number: w.terms, session: pair.Session}
		s.terms[pair.Session] = w.holder
		w.holder.renewed.Store(s.sessions[pair.Session].renewed.UnixNano())
		w.trace.add("store: %s has the lock, term %d", by.id, w.terms)
	}
}

// epoch is that of the feed.
func (s *server) epoch() string {
	var feed struct{ Epoch string }
	if p := s.keys[prefix+"feed"]; p != nil {
		_ = json.Unmarshal(p.Value, &feed)
	}
	return feed.Epoch
}

// snapshot returns what puts keys and sessions back, with the index of now: what is blocked ends.
func (s *server) snapshot() (restore func()) {
	index, keys, gone := s.index, maps.Clone(s.keys), maps.Clone(s.gone)
	sessions := maps.Clone(s.sessions)
	return func() {
		for _, n := range s.sessions {
			n.ends.Stop()
		}
		s.index, s.keys, s.gone, s.sessions = index, maps.Clone(keys), maps.Clone(gone), map[string]*session{}
		for id, n := range sessions {
			again := *n
			again.number += 1000
			s.sessions[id] = &again
			s.extend(&again)
		}
		s.restored()
	}
}

// restored makes the world's picture anew and ends all blocking reads.
func (s *server) restored() {
	w := s.w
	clear(w.acks)
	w.holder = nil
	var writes []store.Write
	for _, kind := range store.Kinds() {
		for _, e := range w.all(kind) {
			writes = append(writes, store.Write{Key: e.Key})
		}
	}
	w.data.EditAll(writes...)
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		if k, ok := record(key); ok {
			w.data.EditAll(store.Write{Key: k, Data: s.keys[key].Value})
		}
		s.look(key, s.keys[key])
	}
	for r := range s.waiting {
		r.abandoned = true
		delete(s.waiting, r)
		close(r.changed)
	}
}

// deleteAll is `consul kv delete -recurse le/`.
func (s *server) deleteAll() {
	s.index++
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		s.delete(nil, key)
	}
}

// elect is a change of the servers' own leader: nothing is answered meanwhile, and all sessions live anew.
func (s *server) elect(d time.Duration) {
	s.election = time.Now().Add(d)
	for _, id := range slices.Sorted(maps.Keys(s.sessions)) {
		s.extend(s.sessions[id])
	}
}
