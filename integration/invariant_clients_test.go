package integration

import (
	"fmt"
	"sync"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// clients are TLS clients at work on every name that is followed: new connections and a kept one each.
type clients struct {
	addr  string
	place func(serial string) int // of a certificate among those that replace each other; called one at a time

	mu    sync.Mutex
	names map[string]*watched
	errs  []error
}

// watched is what clients of one name have seen.
type watched struct {
	load  *fixture.Load
	marks []mark // in order of both fields
	back  back
}

// A mark says that from then on no connection may be given a certificate of an earlier place.
type mark struct {
	at    time.Time
	place int
}

// back is the time in which connections were given a certificate that had been replaced.
type back struct {
	times       int
	first, last time.Time
	tolerated   bool
}

func newClients(addr string, place func(string) int) *clients {
	return &clients{addr: addr, place: place, names: map[string]*watched{}}
}

// follow puts clients to work on a name; again has no effect.
func (c *clients) follow(sni string) {
	if n := c.know(sni); n.load == nil {
		n.load = c.start(sni, 1)
	}
}

// know begins to keep what is seen of a name.
func (c *clients) know(sni string) *watched {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names[sni] == nil {
		c.names[sni] = new(watched)
	}
	return c.names[sni]
}

// start puts clients to work that are at most lightly in the way of others.
func (c *clients) start(sni string, keepAlive int) *fixture.Load {
	return fixture.StartLoad(fixture.LoadOptions{
		Addr: c.addr, Name: sni, New: 1, KeepAlive: keepAlive, Pause: 10 * time.Millisecond,
		Saw: func(s fixture.Served, began time.Time) { c.saw(sni, s, began) },
	})
}

// saw compares what a connection was given with what earlier ones were.
func (c *clients) saw(sni string, s fixture.Served, began time.Time) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	n, place := c.names[sni], c.place(s.Serial)
	for _, m := range n.marks {
		if m.at.Before(began) && m.place > place {
			n.back.note(began)
			if !n.back.tolerated {
				c.fail(fmt.Errorf("%s: a connection got certificate %d (serial %s) %v after certificate %d was served", sni, place, s.Serial, began.Sub(m.at), m.place))
			}
			return
		}
	}
	n.mark(now, place)
}

func (n *watched) mark(at time.Time, place int) {
	if last := len(n.marks) - 1; last < 0 || n.marks[last].place < place {
		n.marks = append(n.marks, mark{at, place})
	}
}

func (b *back) note(at time.Time) {
	if b.times == 0 {
		b.first = at
	}
	b.times, b.last = b.times+1, at
}

// mark says that from now on a name has a certificate of that place at least.
func (c *clients) mark(sni string, place int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[sni].mark(time.Now(), place)
}

// tolerate lets connections be given replaced certificates from now on, and seenBack says when they were.
func (c *clients) tolerate(sni string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[sni].back = back{tolerated: true}
}

func (c *clients) seenBack(sni string) back {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[sni].back
}

// forget ends the clients of a name, before it is removed.
func (c *clients) forget(sni string) {
	c.end(sni)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.names, sni)
}

// interrupt does what breaks connections without our doing. Meanwhile clients that may fail go on looking at the
// certificates.
func (c *clients) interrupt(what func()) {
	looking := make([]*fixture.Load, 0, len(c.followed()))
	for _, sni := range c.followed() {
		c.end(sni)
		looking = append(looking, c.start(sni, 0))
	}
	what()
	for _, l := range looking {
		l.Stop()
	}
	for _, sni := range c.followed() {
		c.follow(sni)
	}
}

func (c *clients) followed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]string, 0, len(c.names))
	for sni := range c.names {
		all = append(all, sni)
	}
	return all
}

// end lets the clients of a name finish, and notes what failed.
func (c *clients) end(sni string) fixture.LoadReport {
	c.mu.Lock()
	load := c.names[sni].load
	c.names[sni].load = nil
	c.mu.Unlock()
	if load == nil {
		return fixture.LoadReport{}
	}
	report := load.Stop()
	if report.Failed > 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.fail(fmt.Errorf("%s: %d of %d requests failed: %v", sni, report.Failed, report.Requests, report.Errors))
	}
	return report
}

// fail keeps the first errors. c.mu is held.
func (c *clients) fail(err error) {
	if len(c.errs) < 10 {
		c.errs = append(c.errs, err)
	}
}

// stop ends all clients and returns what was wrong.
func (c *clients) stop() []error {
	for _, sni := range c.followed() {
		c.end(sni)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.errs
}
