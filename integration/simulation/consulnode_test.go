package simulation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// shared is the store of a process: what its issuer and its node need of the fleet.
type shared interface {
	store.Store
	issuer.Fleet
	Offer(ctx context.Context, c *store.Certificate) error
	Withdraw(ctx context.Context, name string) error
	Offered(ctx context.Context) ([]string, error)
	// Run keeps the process in the fleet.
	Run(ctx context.Context) error
}

var (
	_ shared = (*process)(nil)
	_ shared = member{}
)

// member is the store of a process in runs with Consul: the real one.
type member struct {
	*consul.Store
	p *process
}

// openConsul opens the store of a process, on a Consul that is a model.
func (p *process) openConsul() shared {
	role := consul.RoleNode
	if p.node.edge {
		role = consul.RoleEdge
	}
	s, err := consul.Open(consul.Config{
		URL: "consul:///le", Node: p.node.name, Role: role, StateDir: filepath.Join(p.w.dir, p.node.name), Plain: true,
		CAs: []string{"https://ca.example/directory"}, Logger: p.log(), Getenv: func(string) string { return "" },
		Transport: way{p}, Jitter: p.jitter,
	})
	if err != nil {
		panic(err) // of the simulation's own settings
	}
	return member{s, p}
}

// Run also answers the leader's questions.
func (m member) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- m.FollowQuestions(ctx, m.p.shelf.Answer) }()
	return errors.Join(m.Store.Run(ctx), <-done)
}

// Lead notes which lease it is, for the checks.
func (m member) Lead(ctx context.Context) (store.Lease, error) {
	real, err := m.Store.Lead(ctx)
	if err != nil {
		return nil, err
	}
	p, w := m.p, m.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.holder
	if l == nil || l.p != p || l.real != nil {
		l = &lease{p: p} // it is lost already
	}
	l.real = real
	l.ctx, l.cancel = context.WithCancelCause(real.Context())
	context.AfterFunc(l.ctx, func() { l.over.CompareAndSwap(0, time.Now().UnixNano()) })
	p.lease = l
	if p.dead {
		l.end(errDead)
	}
	return l, p.alive()
}

// alive is gate for who must not wait. w.mu is held.
func (p *process) alive() error {
	if p.dead {
		return errDead
	}
	return nil
}

func (m member) Commit(ctx context.Context, given store.Lease, pre []store.Precondition, ops []store.Op) error {
	if l, ok := given.(*lease); ok {
		given = l.real
		if len(ops) > 0 { // whether commits of one moment share a transaction must not be chance
			pause(m.p.w.dice.span(time.Millisecond, m.p.id+" queues "+topic(ops), m.p.w.now()))
		}
	}
	return m.Store.Commit(ctx, given, pre, ops)
}

func (m member) Ask(ctx context.Context, given store.Lease, stored map[string]string) ([]string, error) {
	return m.Store.Ask(ctx, given.(*lease).real, stored)
}

func (m member) Reseal(ctx context.Context, given store.Lease) ([]string, error) {
	return m.Store.Reseal(ctx, given.(*lease).real)
}

// barrierDeadline is how long a node that is live has.
const barrierDeadline = 5 * time.Second

// Barrier looks that only those nodes are not waited for that have had their time, now or before.
func (m member) Barrier(ctx context.Context, generation uint64) ([]string, error) {
	began := time.Now()
	missing, err := m.Store.Barrier(ctx, generation)
	p, w := m.p, m.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return missing, err
	}
	if ctx.Err() == nil || time.Since(began) < barrierDeadline-time.Second {
		for _, node := range missing {
			if _, known := p.suspects[node]; !known && ctx.Err() == nil {
				w.fail("%s does not wait for %s, generation %d", p.id, node, generation)
			}
		}
	}
	for node, owed := range p.suspects {
		if a, live := w.acks[node]; !live || a.generation >= owed && a.epoch == w.server.epoch() {
			delete(p.suspects, node)
		}
	}
	for _, node := range missing {
		p.suspects[node] = max(p.suspects[node], generation)
	}
	return missing, nil
}

func (m member) Offers(ctx context.Context, name string) ([]issuer.Offer, error) {
	found, _, err := m.Store.Offers(ctx, name)
	offers := make([]issuer.Offer, len(found))
	for i, o := range found {
		offers[i] = issuer.Offer{Node: o.Node, Certificate: o.Certificate}
	}
	return offers, err
}

func (m member) Offered(ctx context.Context) ([]string, error) {
	found, _, err := m.Store.Offers(ctx, "")
	var names []string
	for _, o := range found {
		if o.Node == m.p.node.name {
			names = append(names, o.Certificate.Name)
		}
	}
	return slices.Compact(names), err
}

// stateDirs makes a directory for what nodes keep of Consul.
func (w *world) stateDirs() func() {
	dir, err := os.MkdirTemp("", "simulation")
	if err != nil {
		panic(fmt.Sprint("make a directory: ", err))
	}
	w.dir = dir
	return func() { _ = os.RemoveAll(dir) }
}
