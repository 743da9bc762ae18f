package consul

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// outOfReach is how long every call must have failed before Consul counts as out of reach: an election takes less.
const outOfReach = 4 * time.Second

// contact is what the last calls say of Consul.
type contact struct {
	log   *slog.Logger
	mu    sync.Mutex
	err   error     // of the last call; nil when it was answered
	since time.Time // when the first call of the streak failed
	said  bool      // the streak was logged
	back  time.Time // when the last streak that was logged was over
}

func (c *contact) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if err != nil && c.err == nil {
		c.since = now
	}
	c.err = err
	switch {
	case err == nil && c.said:
		c.said, c.back = false, now
		c.log.Info("Consul answers again", "after", lasted(c.since))
	case err != nil && !c.said && now.Sub(c.since) >= outOfReach:
		c.said = true
		c.log.Warn("Consul is out of reach, trying again; what is served stays, nothing is issued", "err", err)
	}
}

// fails returns the error of the last call while no call has been answered for long enough.
func (c *contact) fails() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || time.Since(c.since) < outOfReach {
		return nil
	}
	return c.err
}

// backSince is when Consul last came back from being out of reach.
func (c *contact) backSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.back
}

// noteContact notes how a call ended. One that its caller gave up says nothing.
func (k *call) noteContact(err error) {
	if k.local || errors.Is(err, context.Canceled) {
		return
	}
	k.c.contact.note(err)
}

// Reachable returns why nothing can be read from Consul or written to it, nil while something can. Its text ends with
// what to do.
func (s *Store) Reachable() error { return s.c.contact.fails() }
