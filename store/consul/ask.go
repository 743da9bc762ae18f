package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// question is the value of the key of that name: the certificates that all nodes are to compare with what they have on
// disk. A node that has done so says the question's id in its ack.
type question struct {
	Version int               `json:"v"`
	ID      string            `json:"id"`
	Names   map[string]string `json:"names"` // fingerprint of what is stored; empty for nothing
}

// rejoin is how long after the store went back in time nodes may take to say again that they are live.
const rejoin = ttl/3 + 3*time.Second

// Live names the nodes that have a session and a HAProxy.
func (s *Store) Live(ctx context.Context) ([]string, error) {
	acks, err := s.listing.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("list live nodes: %w", err)
	}
	return names(acks.serving()), nil
}

// Ask has every other live node compare certificates, by name and the fingerprint of what is stored, with its disk. It
// returns when all have answered, or with the names of those that have not when ctx ends. A node that did not answer
// the last time is not waited for.
func (s *Store) Ask(ctx context.Context, lease store.Lease, stored map[string]string) (missing []string, err error) {
	l, ok := lease.(*leaseTerm)
	if !ok || l.s != s {
		return nil, store.Refusedf("the lease is not of this store")
	}
	// What was deleted or restored has the acks of other times in it, or none.
	sleep(ctx, time.Until(s.jumped().Add(rejoin)))
	q := question{1, randomID(6), stored}
	value, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("ask the nodes: %w", err)
	}
	c := &commit{ctx: ctx, ops: api.TxnOps{kvOp(api.KVSet, s.keys.question(), value, 0)}, result: make(chan error, 1)}
	if err := l.writer.do(c); err != nil {
		return nil, fmt.Errorf("ask the nodes: %w", err)
	}
	return s.await(ctx, q.ID)
}

// await waits for the answers of all nodes that are live now.
func (s *Store) await(ctx context.Context, id string) (missing []string, err error) {
	_, now, err := s.whoIsLive(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the nodes: it is not known which are live: %w", err)
	}
	waiting := now.serving()
	delete(waiting, s.cfg.Node) // it looked itself
	acks, leave := s.acks.join()
	defer leave()
	first := now.index
	for version := uint64(0); ; {
		if now.index >= first {
			for node := range waiting {
				if r, live := now.nodes[node]; !live || r.Answer == id {
					delete(waiting, node)
					s.silent.set(node, false)
				}
			}
		}
		if len(without(waiting, s.silent.all())) == 0 {
			return names(waiting), nil
		}
		var ok bool
		if now, version, ok = acks.next(ctx, version); !ok {
			for node := range waiting {
				s.silent.set(node, errors.Is(ctx.Err(), context.DeadlineExceeded))
			}
			return names(waiting), nil
		}
	}
}

// silent is the nodes that did not answer the last question that they were waited for with.
type silent struct {
	mu    sync.Mutex
	nodes map[string]bool
}

func (s *silent) set(node string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = map[string]bool{}
	}
	if delete(s.nodes, node); is {
		s.nodes[node] = true
	}
}

func (s *silent) all() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]bool{}
	for n := range s.nodes {
		all[n] = true
	}
	return all
}

// FollowQuestions calls answer for every question of a leader, and tells the leader when it returned nil, until ctx
// ends. A question that could not be answered is not asked of this node again.
func (s *Store) FollowQuestions(ctx context.Context, answer func(ctx context.Context, stored map[string]string) error) error {
	last := ""
	read := func(ctx context.Context, index uint64) (*api.KVPair, uint64, error) {
		return s.c.get(ctx, s.keys.question(), index)
	}
	watch(ctx, s.c, "the leader's questions", read, func(p *api.KVPair) bool {
		var q question
		if p == nil || json.Unmarshal(p.Value, &q) != nil || q.ID == "" || q.ID == last {
			return false
		}
		last = q.ID
		err := answer(ctx, q.Names)
		for n := 0; err != nil && n < 3 && sleep(ctx, time.Second); n++ {
			err = answer(ctx, q.Names)
		}
		if err != nil {
			s.log.Warn("the leader's question is not answered", "err", err)
			return true
		}
		s.member.answered(q.ID)
		return true
	})
	return nil
}

func (m *member) answered(id string) {
	m.mu.Lock()
	m.answer = id
	m.mu.Unlock()
	m.poke()
}

// jumped is when this process last saw the store go back in time: it was deleted, or restored.
func (s *Store) jumped() time.Time {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.jumped
}
