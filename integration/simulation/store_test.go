package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spoacme/spoacme/store"
)

// In runs without Consul every process has the shared store through a connection of its own, which is slow, fails, and goes on working for
// calls of processes that are stopped or dead. Process implements store.Store.
var _ store.Store = (*process)(nil)

const (
	ttl         = 10 * time.Second // of the lock and of a node's ack, by the process's clock
	callTimeout = 5 * time.Second
)

var (
	errDead     = errors.New("the process is dead")
	errInjected = errors.New("injected")
	errNoRoute  = errors.New("the store is out of reach")
	errTookLong = errors.New("not renewed in time")
	errSaw      = errors.New("somebody else has the lock, or nobody")
	errForeign  = errors.New("the lease is not of this process")
)

// lease is one term at the store and as its process sees it.
type lease struct {
	p      *process
	number int
	ctx    context.Context
	cancel context.CancelCauseFunc
	queue  chan struct{} // one commit after the other, as one writer does
	over   atomic.Int64  // when it ended

	session string       // in runs with Consul; so are the others
	real    store.Lease  // what it stands for
	renewed atomic.Int64 // when the session was last renewed by its process
}

func (l *lease) Context() context.Context { return l.ctx }

// Release gives the lock back when the store can be reached; else it expires.
func (l *lease) Release() {
	l.end(errors.New("released"))
	if l.real != nil {
		l.real.Release()
		return
	}
	if l.p.gate() != nil {
		return
	}
	w := l.p.w
	pause(w.dice.span(5*time.Millisecond, l.p.id+" release", l.number))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holder != l || l.p.dead {
		return
	}
	if l.p.cut {
		time.AfterFunc(2*ttl, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.free(l, "its session expired")
		})
		return
	}
	w.free(l, "released")
}

func (l *lease) end(cause error) {
	l.over.CompareAndSwap(0, time.Now().UnixNano())
	l.cancel(fmt.Errorf("%w: %w", store.ErrLeaseEnded, cause))
}

// ended reports whether the process could know that the lease is over: not at the very moment.
func (l *lease) ended() bool {
	at := l.over.Load()
	return at != 0 && at < time.Now().UnixNano()
}

// free takes the lock from l. w.mu is held.
func (w *world) free(l *lease, why string) {
	if l == nil || w.holder != l {
		return
	}
	w.holder = nil
	w.trace.add("store: the lock of %s is free: %s", l.p.id, why)
	w.wake()
	go l.lost()
}

// lost lets the process learn that the lock is gone: by its watch, once it runs and reaches the store.
func (l *lease) lost() {
	if l.p.reach(context.Background()) != nil {
		return
	}
	pause(l.p.w.dice.span(100*time.Millisecond, l.p.id+" sees the lock", l.number))
	if l.p.gate() == nil {
		l.end(errSaw)
	}
}

// Lead implements store.Store.
func (p *process) Lead(ctx context.Context) (store.Lease, error) {
	w := p.w
	for {
		if err := p.reach(ctx); err != nil {
			return nil, fmt.Errorf("lead: %w", err)
		}
		pause(w.dice.span(25*time.Millisecond, p.id+" candidate", w.now()))
		w.mu.Lock()
		if w.holder == nil && p.healthy() && ctx.Err() == nil {
			l := w.lead(ctx, p)
			w.mu.Unlock()
			pause(w.dice.span(10*time.Millisecond, p.id+" begins", l.number))
			return l, p.gate()
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lead: %w", ctx.Err())
		case <-p.died:
			return nil, errDead
		case <-changed:
		}
	}
}

// lead gives the lock to p. w.mu is held.
func (w *world) lead(ctx context.Context, p *process) *lease {
	w.terms++
	l := &lease{p: p, number: w.terms, queue: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	w.holder, p.lease = l, l
	w.wake()
	w.trace.add("store: %s has the lock, term %d", p.id, l.number)
	return l
}

// wake tells everybody that locks or acks changed. w.mu is held.
func (w *world) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// gate returns when the process runs: not while it is stopped, and never well when it is dead.
func (p *process) gate() error {
	for {
		p.w.mu.Lock()
		dead, stopped := p.dead, p.stopped
		p.w.mu.Unlock()
		if dead {
			return errDead
		}
		if stopped == nil {
			return nil
		}
		select {
		case <-stopped:
		case <-p.died:
		}
	}
}

// reach returns when the process runs and has the store in reach, or ctx ends.
func (p *process) reach(ctx context.Context) error {
	for {
		if err := p.gate(); err != nil {
			return err
		}
		p.w.mu.Lock()
		cut := p.uncut
		p.w.mu.Unlock()
		if cut == nil {
			return ctx.Err()
		}
		select {
		case <-cut:
		case <-p.died:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// now tells calls about the same thing apart: by the moment, not by their number, for of two calls at the same moment it
// is chance which comes first. They share their fate.
func (w *world) now() int { return int(time.Since(w.start)) }

// ask takes a read to the store.
func (p *process) ask(ctx context.Context, about string) error {
	if err := p.gate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w, n := p.w, p.w.now()
	w.steps.Add(1)
	about = p.id + " " + about
	way := w.dice.span(5*time.Millisecond, about, n)
	if w.faulty(readSlow, about+" slow", n) {
		way += w.dice.span(4*time.Second, about+" way", n)
	}
	if err := p.sleep(ctx, way); err != nil {
		return err
	}
	w.mu.Lock()
	cut := p.cut
	w.mu.Unlock()
	if cut {
		if err := p.sleep(ctx, callTimeout); err != nil {
			return err
		}
		return errNoRoute
	}
	if w.faulty(readFails, about+" fails", n) {
		return errInjected
	}
	return nil
}

// answer takes what was read back to the process.
func (p *process) answer(ctx context.Context, about string) error {
	way := p.w.dice.span(5*time.Millisecond, p.id+" back "+about, p.w.now())
	if err := p.sleep(ctx, way); err != nil {
		return err
	}
	return p.gate()
}

// sleep pauses unless ctx ends or the process dies.
func (p *process) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.died:
		return errDead
	}
}

func pause(d time.Duration) { <-time.After(d) }

// Get implements store.Store.
func (p *process) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	about := "get " + key.String()
	if err := p.ask(ctx, about); err != nil {
		return store.Entry{}, fmt.Errorf("%s: %w", about, err)
	}
	p.w.mu.Lock()
	e, err := p.w.data.Get(context.Background(), key)
	p.w.mu.Unlock()
	if err := p.answer(ctx, about); err != nil {
		return store.Entry{}, fmt.Errorf("%s: %w", about, err)
	}
	return e, err
}

// List implements store.Store.
func (p *process) List(ctx context.Context, kind store.Kind) (store.Listing, error) {
	about := "list " + string(kind)
	if err := p.ask(ctx, about); err != nil {
		return store.Listing{}, fmt.Errorf("%s: %w", about, err)
	}
	p.w.mu.Lock()
	l, err := p.w.data.List(context.Background(), kind)
	p.w.mu.Unlock()
	if err := p.answer(ctx, about); err != nil {
		return store.Listing{}, fmt.Errorf("%s: %w", about, err)
	}
	return l, err
}

// Follow implements store.Store.
func (p *process) Follow(ctx context.Context, changed func([]store.Key), kinds ...store.Kind) error {
	w, about := p.w, fmt.Sprint(p.id, " follows ", kinds)
	return w.data.Follow(ctx, func(keys []store.Key) {
		n := w.now()
		way := w.dice.span(20*time.Millisecond, about, n)
		if w.faulty(watchSlow, about+" slow", n) {
			way += w.dice.span(8*time.Second, about+" way", n)
		}
		if p.sleep(ctx, way) == nil && p.reach(ctx) == nil {
			changed(keys)
		}
	}, kinds...)
}

// ack is a node that is live, as the store knows it.
type ack struct {
	p          *process
	generation uint64
	session    string // in runs with Consul; so is the epoch
	epoch      string
}

// Ack implements store.Store: it returns when the store knows.
func (p *process) Ack(ctx context.Context, generation uint64) error {
	w := p.w
	pause(w.dice.span(10*time.Millisecond, p.id+" acks", w.now()))
	if err := p.reach(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.acked = max(p.acked, generation)
	p.member = true
	w.register(p)
	return nil
}

// register makes p a live node, if its session is. w.mu is held.
func (w *world) register(p *process) {
	if !p.member || !p.healthy() {
		return
	}
	w.acks[p.node.name] = ack{p: p, generation: p.acked}
	w.wake()
}

// Barrier implements store.Store, with the suspects of FLEET.
func (p *process) Barrier(ctx context.Context, generation uint64) ([]string, error) {
	w, n := p.w, p.w.now()
	for p.ask(ctx, "acks") != nil {
		if ctx.Err() != nil || p.gate() != nil {
			return nil, errors.New("barrier: it is not known which nodes are live")
		}
		_ = p.sleep(ctx, 100*time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := map[string]bool{}
	for node := range w.acks {
		waiting[node] = true
	}
	for node, owed := range p.suspects {
		if a, live := w.acks[node]; !live || a.generation >= owed {
			delete(p.suspects, node)
		}
	}
	for {
		for node := range waiting {
			if a, live := w.acks[node]; !live && node != p.node.name || a.generation >= generation {
				delete(waiting, node)
			}
		}
		left := slices.Sorted(maps.Keys(waiting))
		if !slices.ContainsFunc(left, func(node string) bool { _, suspect := p.suspects[node]; return !suspect }) {
			return left, nil
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
			_ = p.sleep(ctx, w.dice.span(10*time.Millisecond, p.id+" barrier", n))
		case <-ctx.Done():
		case <-p.died:
		}
		dead := p.gate()
		w.mu.Lock()
		if ctx.Err() != nil || dead != nil {
			for _, node := range left {
				p.suspects[node] = max(p.suspects[node], generation)
			}
			w.trace.add("%s: barrier %d passed without %v", p.id, generation, left)
			return left, nil
		}
	}
}
