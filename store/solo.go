package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Solo is the lease and the acknowledgements of a store that one process has for itself. Its zero value is ready.
type Solo struct {
	// Node is what Barrier calls this process.
	Node string

	mu      sync.Mutex
	lease   *soloLease
	closed  error
	acked   uint64
	changed chan struct{} // closed when something above changes; nil while nobody waits
}

type soloLease struct {
	solo   *Solo
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (l *soloLease) Context() context.Context { return l.ctx }
func (l *soloLease) Release()                 { l.solo.end(l, errors.New("released")) }

// Lead implements Store: it waits until no other lease is held.
func (s *Solo) Lead(ctx context.Context) (Lease, error) {
	for {
		s.mu.Lock()
		if err := s.closed; err != nil {
			s.mu.Unlock()
			return nil, fmt.Errorf("lead: %w", err)
		}
		if ctx.Err() == nil && s.lease == nil {
			l := &soloLease{solo: s}
			l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
			s.lease = l
			s.mu.Unlock()
			return l, nil
		}
		wait := s.wait()
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lead: %w", ctx.Err())
		case <-wait:
		}
	}
}

// Holds returns nil when lease is nil or the one that holds, otherwise an error that wraps ErrRefused.
func (s *Solo) Holds(lease Lease) error {
	if lease == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := lease.(*soloLease); ok && l == s.lease {
		return nil
	}
	if err := context.Cause(lease.Context()); err != nil {
		return Refusedf("%w", err)
	}
	return Refusedf("the lease is not of this store")
}

// EndLease ends the lease that is held, if any. Its cause wraps ErrLeaseEnded and cause.
func (s *Solo) EndLease(cause error) {
	s.mu.Lock()
	l := s.lease
	s.mu.Unlock()
	s.end(l, cause)
}

func (s *Solo) end(l *soloLease, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l == nil || s.lease != l {
		return
	}
	l.cancel(fmt.Errorf("%w: %w", ErrLeaseEnded, cause))
	s.lease = nil
	s.wake()
}

// Close ends the lease; Lead and Barrier fail from now on.
func (s *Solo) Close(cause error) {
	s.EndLease(cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		s.closed = cause
		s.wake()
	}
}

// Ack implements Store.
func (s *Solo) Ack(_ context.Context, generation uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if generation > s.acked {
		s.acked = generation
		s.wake()
	}
	return nil
}

// Barrier implements Store.
func (s *Solo) Barrier(ctx context.Context, generation uint64) (missing []string, err error) {
	for {
		s.mu.Lock()
		acked, closed, wait := s.acked, s.closed, s.wait()
		s.mu.Unlock()
		if acked >= generation {
			return nil, nil
		}
		if closed != nil {
			return nil, fmt.Errorf("barrier: %w", closed)
		}
		select {
		case <-ctx.Done():
			return []string{s.Node}, nil
		case <-wait:
		}
	}
}

// wait returns a channel that closes at the next change. s.mu is held.
func (s *Solo) wait() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// wake is called with s.mu held.
func (s *Solo) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}
