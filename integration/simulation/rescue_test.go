package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/store"
)

// Process implements issuer.Fleet in runs without Consul: questions and offers go by the store.
var _ issuer.Fleet = (*process)(nil)

// Run implements shared: sessions are the world's there.
func (p *process) Run(context.Context) error { return nil }

// onDisk is what HAProxy's files hold.
func (p *process) onDisk(_ context.Context, name, fingerprint string) (*store.Bundle, error) {
	if err := p.gate(); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if b := p.node.disk[name]; b != nil && b.Fingerprint != fingerprint {
		return b, nil
	}
	return nil, nil
}

// learn notes what is stored.
func (p *process) learn(keys []store.Key, certs []*store.Certificate, err error) {
	if err != nil {
		return
	}
	p.w.mu.Lock()
	if keys == nil {
		clear(p.known)
	}
	for _, k := range keys {
		delete(p.known, k.Name)
	}
	for _, c := range certs {
		p.known[c.Name] = c
	}
	p.w.mu.Unlock()
	var names []string
	for _, k := range keys {
		names = append(names, k.Name)
	}
	p.shelf.Poke(names...)
}

func (p *process) newShelf() *issuer.Shelf {
	w, n := p.w, p.node
	s := &issuer.Shelf{
		Store: p.store, Disk: p.onDisk, Jitter: p.jitter, Logger: p.log(),
		Stored: func(name string) *store.Certificate {
			w.mu.Lock()
			defer w.mu.Unlock()
			return p.known[name]
		},
		Names: func() []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Sorted(maps.Keys(p.known))
		},
		Offer: p.store.Offer, Withdraw: p.store.Withdraw, Offered: p.store.Offered,
	}
	if !n.edge {
		s.Copy = n.copy
	}
	return s
}

// Offer, Withdraw and Offered are for the shelf.
func (p *process) Offer(ctx context.Context, c *store.Certificate) error {
	return p.change(ctx, "offer "+c.Name, func() { p.node.offers[c.Name] = c })
}

func (p *process) Withdraw(ctx context.Context, name string) error {
	return p.change(ctx, "withdraw "+name, func() { delete(p.node.offers, name) })
}

func (p *process) Offered(ctx context.Context) (names []string, err error) {
	err = p.change(ctx, "offered", func() { names = slices.Sorted(maps.Keys(p.node.offers)) })
	return names, err
}

// change does something at the store.
func (p *process) change(ctx context.Context, about string, f func()) error {
	if err := p.ask(ctx, about); err != nil {
		return fmt.Errorf("%s: %w", about, err)
	}
	p.w.mu.Lock()
	f()
	p.w.trace.add("%s: %s", p.id, about)
	p.w.wake()
	p.w.mu.Unlock()
	return p.answer(ctx, about)
}

// Live implements issuer.Fleet.
func (p *process) Live(ctx context.Context) ([]string, error) {
	if err := p.ask(ctx, "live"); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return slices.Sorted(maps.Keys(p.w.acks)), nil
}

// Ask implements issuer.Fleet.
func (p *process) Ask(ctx context.Context, l store.Lease, stored map[string]string) ([]string, error) {
	w := p.w
	if err := p.ask(ctx, "question"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if store.Lease(w.holder) != l {
		return nil, store.Refusedf("%w", store.ErrLeaseEnded)
	}
	waiting := map[string]bool{}
	for name, a := range w.acks {
		waiting[name] = true
		go a.p.reply(ctx, stored, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(waiting, name)
			delete(p.mute, name)
			w.wake()
		})
	}
	for slices.ContainsFunc(slices.Collect(maps.Keys(waiting)), func(name string) bool { return !p.mute[name] }) {
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		dead := p.gate()
		w.mu.Lock()
		if ctx.Err() != nil || dead != nil {
			for name := range waiting {
				p.mute[name] = true
			}
			break
		}
	}
	return slices.Sorted(maps.Keys(waiting)), nil
}

// reply is how a node answers a question.
func (p *process) reply(ctx context.Context, stored map[string]string, done func()) {
	w := p.w
	way := w.dice.span(100*time.Millisecond, p.id+" hears a question", w.now())
	if w.faulty(watchSlow, p.id+" hears it late", w.now()) {
		way += w.dice.span(70*time.Second, p.id+" question way", w.now())
	}
	if p.sleep(ctx, way) != nil || p.reach(ctx) != nil {
		return
	}
	for p.shelf.Answer(p.ctx, stored) != nil {
		if p.sleep(p.ctx, time.Second) != nil || ctx.Err() != nil {
			return
		}
	}
	if p.reach(ctx) == nil {
		done()
	}
}

// Offers implements issuer.Fleet.
func (p *process) Offers(ctx context.Context, name string) (offers []issuer.Offer, err error) {
	if err := p.ask(ctx, "offers "+name); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	for _, n := range p.w.nodes {
		for _, have := range slices.Sorted(maps.Keys(n.offers)) {
			if name == "" || have == name {
				offers = append(offers, issuer.Offer{Node: n.name, Certificate: n.offers[have]})
			}
		}
	}
	p.w.mu.Unlock()
	return offers, p.answer(ctx, "offers "+name)
}

// FollowOffers implements issuer.Fleet.
func (p *process) FollowOffers(ctx context.Context, changed func()) error {
	w := p.w
	last := "none"
	for {
		w.mu.Lock()
		wake, now := w.changed, ""
		for _, n := range w.nodes {
			for _, name := range slices.Sorted(maps.Keys(n.offers)) {
				now += n.name + name + n.offers[name].Fingerprint
			}
		}
		w.mu.Unlock()
		if now != last {
			last = now
			_ = p.sleep(ctx, w.dice.span(20*time.Millisecond, p.id+" sees offers", w.now()))
			if err := p.reach(ctx); err == nil {
				changed()
			} else if errors.Is(err, errDead) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.died:
			return nil
		case <-wake:
		}
	}
}

// Reseal implements issuer.Fleet: nothing is sealed here.
func (p *process) Reseal(context.Context, store.Lease) ([]string, error) { return nil, nil }
