package simulation

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// server is the model of Consul's servers: keys, sessions, transactions and blocking reads, with an index that goes on with every
// change, as https://developer.hashicorp.com/consul/api-docs and real servers have it. All methods are called with world.mu held.
type server struct {
	w        *world
	index    uint64
	keys     map[string]*api.KVPair
	gone     map[string]uint64 // tombstones: the index at which a key was deleted
	sessions map[string]*session
	waiting  map[*waiter]bool
	terms    map[string]*lease // of leaders, by session
	made     int               // sessions
	election time.Time         // until then no request is answered
}

// session is a session of a process.
type session struct {
	id       string
	p        *process
	behavior string
	renewed  time.Time
	number   int         // of its expiry: one that was put off does not count
	ends     *time.Timer // when it expires
}

// waiter is a read that blocks.
type waiter struct {
	query     query
	nothing   bool // there is nothing yet: then every write wakes it, as in Consul
	abandoned bool // a restore ended it
	changed   chan struct{}
}

// query is what a read asks for.
type query struct {
	key       string // or the prefix
	recurse   bool
	names     bool
	separator string
}

func newServer(w *world) *server {
	return &server{w: w, keys: map[string]*api.KVPair{}, gone: map[string]uint64{}, sessions: map[string]*session{}, terms: map[string]*lease{}, waiting: map[*waiter]bool{}}
}

// read answers a query: the pairs in the order of their keys, and the index that a blocking read waits to be passed.
func (s *server) read(q query) (pairs api.KVPairs, index uint64) {
	if !q.recurse && !q.names {
		if p := s.keys[q.key]; p != nil {
			return api.KVPairs{p}, p.ModifyIndex
		}
		return nil, max(s.index, 1)
	}
	for key, p := range s.keys {
		if strings.HasPrefix(key, q.key) {
			pairs = append(pairs, p)
			index = max(index, p.ModifyIndex)
		}
	}
	for key, at := range s.gone {
		if strings.HasPrefix(key, q.key) {
			index = max(index, at)
		}
	}
	if index == 0 { // as Consul does where there is nothing: it wakes with every write
		index = max(s.index, 1)
	}
	slices.SortFunc(pairs, func(a, b *api.KVPair) int { return strings.Compare(a.Key, b.Key) })
	return pairs, index
}

// cut are the keys of pairs, cut after the next separator.
func (q query) cut(pairs api.KVPairs) []string {
	keys := []string{}
	for _, p := range pairs {
		key := p.Key
		if at := strings.Index(key[len(q.key):], q.separator); q.separator != "" && at >= 0 {
			key = key[:len(q.key)+at+len(q.separator)]
		}
		keys = append(keys, key)
	}
	return slices.Compact(keys)
}

// wait begins to wait until the answer of a query may be another one.
func (s *server) wait(q query, nothing bool) *waiter {
	w := &waiter{query: q, nothing: nothing, changed: make(chan struct{})}
	s.waiting[w] = true
	return w
}

func (s *server) wake(key string) {
	for w := range s.waiting {
		below := (w.query.recurse || w.query.names) && strings.HasPrefix(key, w.query.key)
		if w.nothing || below || key == w.query.key {
			delete(s.waiting, w)
			close(w.changed)
		}
	}
}

// set writes a key. What is the same already is not written.
func (s *server) set(p *process, key string, value []byte, flags uint64, session string) *api.KVPair {
	old := s.keys[key]
	if old != nil && bytes.Equal(old.Value, value) && old.Flags == flags && old.Session == session {
		return old
	}
	pair := &api.KVPair{Key: key, Value: value, Flags: flags, Session: session, ModifyIndex: s.index, CreateIndex: s.index}
	if old != nil {
		pair.CreateIndex = old.CreateIndex
	}
	s.keys[key] = pair
	delete(s.gone, key)
	s.changed(p, key, pair)
	return pair
}

func (s *server) delete(p *process, key string) {
	if s.keys[key] == nil {
		return
	}
	delete(s.keys, key)
	s.gone[key] = s.index
	s.changed(p, key, nil)
}

// holder is the session of a key.
func (s *server) holder(key string) string {
	if p := s.keys[key]; p != nil {
		return p.Session
	}
	return ""
}

// acquire writes a key and binds it to a session, unless another one has it.
func (s *server) acquire(p *process, key string, value []byte, session string) (bool, error) {
	if s.sessions[session] == nil {
		return false, fmt.Errorf("invalid session %q", session)
	}
	if held := s.holder(key); held != "" && held != session {
		return false, nil
	}
	s.index++
	s.set(p, key, value, 0, session)
	return true, nil
}

const expiryAfter = 10 * time.Second // the TTL of all sessions here

func (s *server) create(p *process, behavior string) string {
	s.made++
	s.index++
	n := &session{id: fmt.Sprintf("session-%d", s.made), p: p, behavior: behavior}
	s.sessions[n.id] = n
	n.renewed = time.Now()
	s.extend(n)
	return n.id
}

// extend puts off the end of a session: it expires between once and twice its TTL from now.
func (s *server) extend(n *session) {
	if n.ends != nil {
		n.ends.Stop()
	}
	n.number++
	d := expiryAfter + s.w.dice.span(expiryAfter, n.id+" expires", n.number)
	n.ends = time.AfterFunc(d, func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		if s.sessions[n.id] == n {
			s.w.trace.add("store: %s of %s expired", n.id, n.p.id)
			s.destroy(n.id)
		}
	})
}

func (s *server) renew(id string) bool {
	n := s.sessions[id]
	if n == nil {
		return false
	}
	n.renewed = time.Now()
	if l := s.terms[id]; l != nil {
		l.renewed.Store(n.renewed.UnixNano())
	}
	s.extend(n)
	return true
}

// destroy ends a session and frees or deletes what it holds.
func (s *server) destroy(id string) {
	n := s.sessions[id]
	if n == nil {
		return
	}
	n.ends.Stop()
	delete(s.sessions, id)
	s.index++
	for _, key := range slices.Sorted(maps.Keys(s.keys)) {
		pair := s.keys[key]
		switch {
		case pair.Session != id:
		case n.behavior == api.SessionBehaviorDelete:
			s.delete(nil, key)
		default:
			s.set(nil, key, pair.Value, pair.Flags, "")
		}
	}
}

// transact does all operations or none.
func (s *server) transact(p *process, ops api.TxnOps) (results api.TxnResults, refused api.TxnErrors) {
	for i, op := range ops {
		if what := s.refuses(op.KV); what != "" {
			refused = append(refused, &api.TxnError{OpIndex: i, What: what})
		}
	}
	if refused != nil {
		if ops[0].KV.Verb == api.KVCheckSession {
			s.w.count.late++
			s.w.trace.add("%s: a transaction is refused: %s", p.id, refused[0].What)
		}
		return nil, refused
	}
	s.seeTransaction(p, ops)
	if slices.ContainsFunc(ops, func(op *api.TxnOp) bool { return op.KV.Verb != api.KVGet }) {
		s.index++
	}
	for _, op := range ops {
		k := op.KV
		var pair *api.KVPair
		switch k.Verb {
		case api.KVGet:
			pair = s.keys[k.Key]
		case api.KVSet, api.KVCAS:
			set := *s.set(p, k.Key, k.Value, k.Flags, s.holder(k.Key))
			set.Value = nil
			pair = &set
		case api.KVDelete, api.KVDeleteCAS:
			s.delete(p, k.Key)
		}
		if pair != nil {
			results = append(results, &api.TxnResult{KV: pair})
		}
	}
	return results, nil
}

// refuses says why an operation can't be done.
func (s *server) refuses(k *api.KVTxnOp) string {
	p := s.keys[k.Key]
	var at uint64
	if p != nil {
		at = p.ModifyIndex
	}
	switch k.Verb {
	case api.KVSet, api.KVDelete:
		return ""
	case api.KVGet:
		if p == nil {
			return fmt.Sprintf("key %q doesn't exist", k.Key)
		}
	case api.KVCAS, api.KVDeleteCAS:
		if at != k.Index {
			return fmt.Sprintf("failed to set key %q, index is stale", k.Key)
		}
	case api.KVCheckIndex:
		if p == nil || at != k.Index {
			return fmt.Sprintf("current modify index %d is not %d", at, k.Index)
		}
	case api.KVCheckNotExists:
		if p != nil {
			return fmt.Sprintf("key %q exists", k.Key)
		}
	case api.KVCheckSession:
		if p == nil || p.Session != k.Session {
			return fmt.Sprintf("lock isn't held by session %q", k.Session)
		}
	default:
		return "unknown verb " + string(k.Verb)
	}
	return ""
}
