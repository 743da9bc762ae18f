package consul

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// retries is how fast anything is tried again: after 50 ms, then later and later, up to 10 s, each half as soon to half as late.
type retries struct {
	*backoff.ExponentialBackOff
	jitter func(time.Duration) time.Duration
}

func (c *client) newBackoff() retries {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 50 * time.Millisecond
	b.MaxInterval = 10 * time.Second
	b.RandomizationFactor = 0
	return retries{b, c.jitter}
}

func (r retries) NextBackOff() time.Duration {
	d := r.ExponentialBackOff.NextBackOff()
	return d/2 + r.jitter(d)
}

// gap is the least time between two reads of one watch: changes that come faster are read together.
const gap = 10 * time.Millisecond

// calm is the longest gap of what all nodes watch, and how soon a change is one of many. The first of many is heard at once; of
// those that follow fewer and fewer are heard alone. Else 50 nodes that follow 200 orders read all tokens a hundred times a second,
// and Consul is so busy answering them that the leader waits.
const calm = 80 * time.Millisecond

// The same of what nobody waits for while a burst lasts: certificates, of which a renewal alone is still heard at once, and
// how orders get on, which is for people to see.
const (
	calmFeed     = 250 * time.Millisecond
	calmProgress = 500 * time.Millisecond
)

// watch reads something again and again, each time as soon as it is newer than index, and hands it to got, until ctx
// ends. got reports whether there was news in it. Errors are logged once per streak.
func watch[T any](ctx context.Context, c *client, what string,
	read func(ctx context.Context, index uint64) (T, uint64, error), got func(T) (news bool),
) {
	watchCalmly(ctx, c, what, gap, read, func(v T) int {
		if got(v) {
			return 1
		}
		return 0
	})
}

// watchCalmly is watch with a gap that grows to most while changes come fast, or many at once. got returns how many came.
func watchCalmly[T any](ctx context.Context, c *client, what string, most time.Duration,
	read func(ctx context.Context, index uint64) (T, uint64, error), got func(T) (news int),
) {
	var index uint64
	pause := gap
	failures := c.newBackoff()
	failing := streak{c: c}
	idle := 0
	for ctx.Err() == nil {
		began := time.Now()
		value, next, err := read(ctx, index)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			failing.failed("can't watch "+what+" in Consul, trying again", err)
			c.metrics.watchErrors.Inc()
			// Who answers next may be a Consul that was restored: asked for what is newer, it would wait for as many writes as
			// were undone.
			index = 0
			sleep(ctx, failures.NextBackOff())
			continue
		}
		failing.over("watching " + what + " in Consul again")
		failures.Reset()
		if next < index || index > 0 && next == index && time.Since(began) < waitTime {
			// Read again without waiting: a tombstone was reaped, or a snapshot restored. A restore ends what is blocked with
			// what was there before it; asked for what is newer, Consul would then wait for as many writes as were undone.
			next = 0
		}
		asked := index
		index = next
		if news := got(value); news > 0 || asked == 0 || next == asked {
			idle = 0
			took := time.Since(began)
			if pause = min(2*pause, most); news < 2 && took > calm {
				pause = gap
			}
			if most <= calm {
				sleep(ctx, pause-took)
			} else {
				sleep(ctx, pause) // a Consul that is slow already is not asked at once again
			}
			continue
		}
		// Woken for nothing, as by every write while the thing is absent.
		idle++
		sleep(ctx, min(time.Duration(idle)*20*time.Millisecond, time.Second))
	}
}

// shared runs one watch for as long as somebody has joined.
type shared[T any] struct {
	run func(ctx context.Context, publish func(T))

	mu  sync.Mutex
	now *running[T]
}

// running is a watch of which the users wait for versions.
type running[T any] struct {
	users  int // guarded by shared.mu
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	value   T
	version uint64
	changed chan struct{} // closed at the next version
}

// join starts the watch, or takes part in it. leave must be called.
func (s *shared[T]) join() (r *running[T], leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		ctx, cancel := context.WithCancel(context.Background())
		r := &running[T]{cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
		s.now = r
		go func() {
			defer close(r.done)
			s.run(ctx, r.publish)
		}()
	}
	r = s.now
	r.users++
	return r, sync.OnceFunc(func() { s.leave(r) })
}

func (s *shared[T]) leave(r *running[T]) {
	s.mu.Lock()
	r.users--
	last := r.users == 0
	if last {
		s.now = nil
	}
	s.mu.Unlock()
	if last {
		r.cancel()
		<-r.done
	}
}

func (r *running[T]) publish(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value = v
	r.version++
	close(r.changed)
	r.changed = make(chan struct{})
}

// next waits for a version above after and returns it. It reports false when ctx ended.
func (r *running[T]) next(ctx context.Context, after uint64) (v T, version uint64, ok bool) {
	for {
		r.mu.Lock()
		value, version, changed := r.value, r.version, r.changed
		r.mu.Unlock()
		if version > after {
			return value, version, true
		}
		select {
		case <-ctx.Done():
			return v, 0, false
		case <-changed:
		}
	}
}

// rounds lets many callers who need a read that began after their call share one.
type rounds[T any] struct {
	read func(context.Context) (T, error)

	mu      sync.Mutex
	waiting *round[T] // the next one; nil when nobody waits for it
	reading bool
}

type round[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// get returns what a read that began after the call found.
func (s *rounds[T]) get(ctx context.Context) (T, error) {
	s.mu.Lock()
	r := s.waiting
	if r == nil {
		r = &round[T]{done: make(chan struct{})}
		s.waiting = r
	}
	if !s.reading {
		s.reading = true
		go s.loop()
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// loop makes reads, each with its own deadline, until nobody waits.
func (s *rounds[T]) loop() {
	for {
		s.mu.Lock()
		r := s.waiting
		s.waiting = nil
		s.reading = r != nil
		s.mu.Unlock()
		if r == nil {
			return
		}
		r.value, r.err = s.read(context.Background())
		close(r.done)
	}
}
