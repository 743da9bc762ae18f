package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store"
)

// tokens keeps the agent's table as the Challenges records are, and acknowledges what is in it: as soon as HAProxy
// sends questions to the agent, not before. HAProxy takes some time to notice that an agent is back, and a
// challenge answered in between would be a failed validation at the CA.
type tokens struct {
	store store.Store
	table *spoa.Table
	log   *slog.Logger
	// reached reports whether HAProxy would ask the agent now.
	reached func(context.Context) bool
	// inStep reports whether the store tells of its changes now, as far as is known.
	inStep func() bool

	looks *looks
	quiet atomic.Bool // the table was as the store when it was read last, and no order was open

	applied chan uint64 // the generation that is in the table; holds the newest only

	mu     sync.Mutex        // the table is changed by one at a time
	probes map[string]string // key authorizations of `check`, by token
}

func newTokens(st store.Store, table *spoa.Table, log *slog.Logger, reached func(context.Context) bool, inStep func() bool) *tokens {
	t := &tokens{store: st, table: table, log: log, reached: reached, inStep: inStep, applied: make(chan uint64, 1), probes: map[string]string{}}
	t.looks = newLooks(t.keyAuths)
	return t
}

// Run follows the challenges until ctx ends.
func (t *tokens) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return follow(ctx, t.store, t.log, t.apply, store.KindChallenges) })
	g.Go(func() error { return t.acknowledge(ctx) })
	return g.Wait()
}

const (
	reachEvery = 50 * time.Millisecond // while HAProxy does not reach the agent
	reachFresh = time.Second           // how long its word is taken
)

// acknowledge says which generation is in the table, while HAProxy reaches the agent. At the start it says that there
// is a node, so that orders wait for it although it can't answer yet.
func (t *tokens) acknowledge(ctx context.Context) error {
	var asked time.Time
	for first := true; ; first = false {
		var generation uint64
		select {
		case <-ctx.Done():
			return nil
		case generation = <-t.applied:
		}
		if first {
			t.ack(ctx, 0)
		}
		for time.Since(asked) > reachFresh {
			if t.reached(ctx) {
				asked = time.Now()
				break
			}
			select {
			case <-ctx.Done():
				return nil
			case generation = <-t.applied:
			case <-time.After(reachEvery):
			}
		}
		t.ack(ctx, generation)
	}
}

func (t *tokens) ack(ctx context.Context, generation uint64) {
	if err := t.store.Ack(ctx, generation); err != nil && ctx.Err() == nil {
		t.log.Warn("tokens can't be acknowledged", "err", err)
	}
}

func (t *tokens) apply(ctx context.Context, _ []store.Key) error {
	t.quiet.Store(false)
	orders, generation, err := t.read(ctx)
	if err != nil {
		return err
	}
	open := len(orders) > 0
	t.mu.Lock()
	orders[probeOrder] = t.probes
	if err := t.table.Replace(generation, orders); err != nil {
		t.log.Error("a challenge can't be answered", "err", err)
	}
	t.mu.Unlock()
	t.quiet.Store(!open)
	select {
	case <-t.applied:
	default:
	}
	t.applied <- generation
	return nil
}

// probeOrder is no certificate's name.
const probeOrder = "probes of check"

// maxProbes limits how many checks are under way at once.
const maxProbes = 16

// publishProbe answers a token on this node alone until withdraw is called.
func (t *tokens) publishProbe(p probe) (withdraw func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.probes) >= maxProbes {
		return nil, errors.New("too many checks at once: try again in a few seconds")
	}
	t.probes[p.Token] = p.KeyAuth
	if err := t.table.Publish(probeOrder, t.table.Generation(), t.probes); err != nil {
		delete(t.probes, p.Token)
		return nil, err
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.probes, p.Token)
		_ = t.table.Publish(probeOrder, t.table.Generation(), t.probes) // what is left was accepted before
	}, nil
}

// read returns the key authorizations by order and token.
func (t *tokens) read(ctx context.Context) (map[string]map[string]string, uint64, error) {
	l, err := t.store.List(ctx, store.KindChallenges)
	if err != nil {
		return nil, 0, err
	}
	orders, generation := map[string]map[string]string{}, uint64(0)
	for _, e := range l.Entries {
		ch := e.Record.(*store.Challenges)
		generation = max(generation, ch.Generation)
		orders[ch.Name] = map[string]string{}
		addKeyAuths(orders[ch.Name], ch)
	}
	for _, err := range l.Unreadable {
		t.log.Error("a challenge can't be read", "err", err)
	}
	return orders, generation, nil
}

// miss is the second look of a node that has not seen a token yet. When the table is as the store is, and no order is open, there
// is nothing to see.
func (t *tokens) miss(ctx context.Context, token string) (string, bool) {
	if t.quiet.Load() && t.inStep() {
		return "", false
	}
	return t.looks.find(ctx, token)
}

// keyAuths returns those of all orders by token.
func (t *tokens) keyAuths(ctx context.Context) (map[string]string, error) {
	l, err := t.store.List(ctx, store.KindChallenges)
	auths := map[string]string{}
	for _, e := range l.Entries {
		addKeyAuths(auths, e.Record.(*store.Challenges))
	}
	return auths, err
}

// addKeyAuths adds the key authorizations of an order by token.
func addKeyAuths(auths map[string]string, ch *store.Challenges) {
	for _, token := range ch.Tokens {
		auths[token] = token + "." + ch.Thumbprint
	}
}
