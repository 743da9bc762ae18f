package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Commit implements store.Store.
func (p *process) Commit(ctx context.Context, given store.Lease, pre []store.Precondition, ops []store.Op) error {
	if err := p.gate(); err != nil {
		return store.Refusedf("%w", err)
	}
	if err := ctx.Err(); err != nil {
		return store.Refusedf("%w", err)
	}
	l, _ := given.(*lease)
	if given != nil && (l == nil || l.p != p) {
		return store.Refusedf("%w", errForeign)
	}
	writes, err := store.EncodeCommit(given, pre, ops, store.Plain{})
	if err != nil {
		return err
	}
	if l != nil && len(ops) > 0 {
		about := topic(ops)
		// Of two at the same moment it must not be chance which one is first.
		pause(p.w.dice.span(time.Millisecond, p.id+" queues "+about, p.w.now()))
		select {
		case l.queue <- struct{}{}:
		case <-ctx.Done():
			return store.Refusedf("%w", ctx.Err())
		case <-p.died:
			return store.Refusedf("%w", errDead)
		}
	}
	p.w.steps.Add(1)
	c := &commit{p: p, lease: l, pre: slices.Clone(pre), ops: slices.Clone(ops), writes: writes, result: make(chan error, 1)}
	go c.travel()
	select {
	case err = <-c.result:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	case <-p.died:
	}
	if dead := p.gate(); dead != nil {
		return fmt.Errorf("%w: %w", store.ErrUnknown, dead)
	}
	return err
}

// topic is what a commit is about, whatever the order of its operations.
func topic(ops []store.Op) string {
	var keys []string
	for _, op := range ops {
		keys = append(keys, op.Key.String())
	}
	return slices.Max(keys)
}

// commit is on its way, whatever becomes of its process.
type commit struct {
	p      *process
	lease  *lease
	pre    []store.Precondition
	ops    []store.Op
	writes []store.Write
	result chan error
}

func (c *commit) travel() {
	if c.lease != nil && len(c.ops) > 0 {
		defer func() { <-c.lease.queue }()
	}
	w, about := c.p.w, "fence"
	if len(c.ops) > 0 {
		about = topic(c.ops)
	}
	n := w.now()
	about = c.p.id + " commit " + about
	way := w.dice.span(15*time.Millisecond, about, n)
	switch {
	case w.faulty(commitRefused, about+" refused", n):
		pause(way)
		c.result <- store.Refusedf("%w", errInjected)
		return
	case w.faulty(commitLost, about+" lost", n):
		pause(way + callTimeout)
		w.trace.add("%s: lost", about)
		c.result <- fmt.Errorf("%w: %w", store.ErrUnknown, errInjected)
		return
	case w.faulty(commitSlow, about+" slow", n):
		way += w.dice.span(12*time.Second, about+" way", n)
	}
	pause(way)
	err := c.arrive(about, n)
	way = w.dice.span(10*time.Millisecond, about+" back", n)
	if err == nil && w.faulty(commitUnanswered, about+" unanswered", n) {
		w.trace.add("%s: done, but the answer is lost", about)
		way, err = callTimeout, fmt.Errorf("%w: %w", store.ErrUnknown, errInjected)
	}
	pause(way)
	c.p.hit(about, n)
	c.result <- err
}

// arrive is what happens at the store. What a process sent before it died may come late, or never.
func (c *commit) arrive(about string, n int) error {
	w := c.p.w
	w.mu.Lock()
	dead, cut := c.p.dead, c.p.cut
	w.mu.Unlock()
	switch {
	case dead && w.dice.chance(400, about+" dies with it", n), cut:
		pause(callTimeout)
		return fmt.Errorf("%w: %w", store.ErrUnknown, errNoRoute)
	case dead:
		pause(w.dice.span(40*time.Second, about+" outlives it", n))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.apply(c, about)
}

// apply does what a commit says, or refuses it. w.mu is held.
func (w *world) apply(c *commit, about string) error {
	if c.lease != nil && w.holder != c.lease {
		w.count.late++
		w.trace.add("%s: refused, it comes late", about)
		go c.lease.lost()
		return store.Refusedf("%w", store.ErrLeaseEnded)
	}
	demanded := map[store.Key]bool{}
	for _, p := range c.pre {
		if w.revision(p.Key) != p.Revision {
			w.trace.add("%s: refused, %s changed", about, p.Key)
			return store.Refusedf("%s changed since it was read", p.Key)
		}
		demanded[p.Key] = true
	}
	for _, op := range c.writes {
		if _, err := w.data.Get(context.Background(), op.Key); errors.Is(err, store.ErrUnreadable) && !demanded[op.Key] {
			return store.Refusedf("%w", err)
		}
	}
	for _, op := range c.ops {
		w.seeWrite(c, op)
	}
	w.data.EditAll(c.writes...)
	if w.trace != nil {
		w.trace.add("%s: %s", about, describe(c.ops))
	}
	return nil
}

func (w *world) revision(key store.Key) store.Revision {
	e, _ := w.data.Get(context.Background(), key) // the entry has its revision even if it can't be read
	return e.Revision
}

func describe(ops []store.Op) string {
	text := "done"
	for _, op := range ops {
		if op.Record == nil {
			text += " -" + op.Key.String()
			continue
		}
		text += " +" + op.Key.String()
		switch r := op.Record.(type) {
		case *store.Order:
			text += fmt.Sprintf("{%s finalized=%t}", r.URL, r.Finalized)
		case *store.Attempt:
			text += fmt.Sprintf("{%d failures, next in %s: %s}", r.Failures, time.Until(r.Next).Round(time.Second), r.Error)
		case *store.Certificate:
			text += "{serial " + r.Serial + "}"
		case *store.Challenges:
			text += fmt.Sprintf("{%v}", r.Tokens)
		}
	}
	return text
}
