package main

import (
	"context"
	"sync"
	"time"
)

// lookEvery is the least time between two looks. HAProxy waits for a second.
const lookEvery = 100 * time.Millisecond

// looks are the second looks into the store for tokens that are not in the table: one at a time for all of them, and not soon
// again. The internet may ask for random tokens as fast as it likes, and every look is a read of Consul's leader.
type looks struct {
	read func(context.Context) (keyAuths map[string]string, err error)
	turn chan struct{} // held by who looks
	last time.Time     // when that was begun last; guarded by turn

	mu   sync.Mutex
	next *look // not begun yet: who comes now waits for it; nil when nobody does
}

type look struct {
	done     chan struct{}
	keyAuths map[string]string // set when done is closed
}

func newLooks(read func(context.Context) (map[string]string, error)) *looks {
	return &looks{read: read, turn: make(chan struct{}, 1)}
}

// find returns what a look that began after the call has for token, before ctx ends.
func (l *looks) find(ctx context.Context, token string) (keyAuth string, ok bool) {
	l.mu.Lock()
	n := l.next
	first := n == nil
	if first {
		n = &look{done: make(chan struct{})}
		l.next = n
	}
	l.mu.Unlock()
	if first {
		l.do(ctx, n)
	}
	select {
	case <-n.done:
	case <-ctx.Done():
	}
	select {
	case <-n.done:
		keyAuth, ok = n.keyAuths[token]
	default:
	}
	return keyAuth, ok
}

// do makes a look when it is its turn. It ends with the context of who came first.
func (l *looks) do(ctx context.Context, n *look) {
	defer close(n.done)
	mine := l.await(ctx)
	l.mu.Lock()
	l.next = nil
	l.mu.Unlock()
	if !mine {
		return
	}
	defer func() { <-l.turn }()
	l.last = time.Now()
	n.keyAuths, _ = l.read(ctx) // a store that can't be read has no tokens; the watch says why
}

// await returns with the turn, when it is time for the next look, or without it when ctx has ended.
func (l *looks) await(ctx context.Context) bool {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	select {
	case <-time.After(time.Until(l.last.Add(lookEvery))):
		return true
	case <-ctx.Done():
		<-l.turn
		return false
	}
}
