package consul

import (
	"context"
	"errors"
	"sync"
	"time"
)

// outOfReach is how long every call must have failed before Consul counts as out of reach: an election takes less.
const outOfReach = 4 * time.Second

// contact is what the last calls say of Consul.
type contact struct {
	mu    sync.Mutex
	err   error     // of the last call; nil when it was answered
	since time.Time // when the first call of the streak failed
}

func (c *contact) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.err == nil {
		c.since = time.Now()
	}
	c.err = err
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
func (s *Store) Reachable() error {
	c := &s.c.contact
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || time.Since(c.since) < outOfReach {
		return nil
	}
	return c.err
}
