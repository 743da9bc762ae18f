package spoa

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// missTTL is how long a token that the store does not have is not asked
	// for again.
	missTTL = time.Second

	// missMemory is how many such tokens are remembered.
	missMemory = 1024
)

// misses reads tokens from the store that the table does not have: at most
// limit at a time, each token once at a time, and not again soon when it was
// not there. The internet may ask for random tokens as fast as it likes.
type misses struct {
	fetch    func(ctx context.Context, token string) (string, bool)
	panicked func(any)
	limit    int
	timeout  time.Duration

	reads   atomic.Uint64 // begun
	found   atomic.Uint64 // with a key authorization
	skipped atomic.Uint64 // not begun because of the limit

	mu      sync.Mutex
	calls   map[string]*call
	absent  map[string]time.Time // token to when it may be asked for again
	running sync.WaitGroup
}

// call is a read under way. keyAuth and ok are set when done is closed.
type call struct {
	done    chan struct{}
	keyAuth string
	ok      bool
}

// read returns what the store has for token, or nothing when it has none,
// takes too long, or is being asked too much already.
func (m *misses) read(ctx context.Context, token string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	c := m.join(ctx, token)
	if c == nil {
		return "", false
	}
	select {
	case <-c.done:
		return c.keyAuth, c.ok
	case <-ctx.Done():
		return "", false
	}
}

// join returns the read of token that is under way, or begins one if it may.
func (m *misses) join(ctx context.Context, token string) *call {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.calls[token]; c != nil {
		return c
	}
	if time.Now().Before(m.absent[token]) {
		return nil
	}
	if len(m.calls) >= m.limit {
		m.skipped.Add(1)
		return nil
	}
	c := &call{done: make(chan struct{})}
	m.calls[token] = c
	m.reads.Add(1)
	// Others may join, so the read does not end with the caller's context.
	ctx = context.WithoutCancel(ctx)
	m.running.Go(func() { m.run(ctx, token, c) })
	return c
}

// run does the read and tells all who wait for it.
func (m *misses) run(ctx context.Context, token string, c *call) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	keyAuth, ok := m.guarded(ctx, token)
	if ok && checkKeyAuth(token, keyAuth) == nil {
		c.keyAuth, c.ok = keyAuth, true
		m.found.Add(1)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.calls, token)
	if !c.ok {
		m.remember(token)
	}
	close(c.done)
}

// guarded calls fetch and contains its panics.
func (m *misses) guarded(ctx context.Context, token string) (keyAuth string, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			m.panicked(p)
			keyAuth, ok = "", false
		}
	}()
	return m.fetch(ctx, token)
}

// remember notes that the store does not have token. The caller holds m.mu.
func (m *misses) remember(token string) {
	now := time.Now()
	if len(m.absent) >= missMemory {
		for t, until := range m.absent {
			if !now.Before(until) {
				delete(m.absent, t)
			}
		}
	}
	if len(m.absent) >= missMemory {
		clear(m.absent) // costs a few reads more, within the limit
	}
	m.absent[token] = now.Add(missTTL)
}
