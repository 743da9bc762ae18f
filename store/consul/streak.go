package consul

import (
	"errors"
	"sync"
	"time"
)

// errUnreached marks errors of calls that Consul did not answer, or only with a fault of its own.
var errUnreached = errors.New("out of reach")

// unreached is an error with that mark. Its text is that of the error.
type unreached struct{ error }

func (u unreached) Unwrap() error        { return u.error }
func (u unreached) Is(target error) bool { return target == errUnreached }

// streak logs a failure that goes on once, and once when it is over. That Consul is out of reach altogether is not said by
// every streak that ends at it, but by contact alone.
type streak struct {
	c *client

	mu    sync.Mutex
	since time.Time // zero while all is well
	said  bool
}

func (s *streak) failed(msg string, err error, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.since.IsZero() {
		s.since = now
	}
	args = append(args, "err", err)
	lasts := s.c.contact.fails() == nil && now.Sub(s.since) > 2*outOfReach && now.Sub(s.c.contact.backSince()) > 2*outOfReach
	if s.said || passes(err) && !lasts {
		s.c.log.Debug(msg, args...)
		return
	}
	s.said = true
	s.c.log.Warn(msg, args...)
}

// passes reports whether a failure is one that Consul's absence brings with it: a session that ended meanwhile is made anew.
func passes(err error) bool {
	return (errors.Is(err, errUnreached) || errors.Is(err, errGone)) && !errors.Is(err, errStuck)
}

// over is called whenever it works.
func (s *streak) over(msg string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said {
		s.c.log.Info(msg, append(args, "after", lasted(s.since))...)
	}
	s.since, s.said = time.Time{}, false
}

func lasted(since time.Time) string { return time.Since(since).Round(100 * time.Millisecond).String() }
