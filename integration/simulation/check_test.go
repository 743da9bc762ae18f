package simulation

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/spoacme/spoacme/store"
)

// The promises, checked with every step. All of these are called with w.mu held.

// publication is who was live when tokens came into the store.
type publication struct {
	by   *process
	at   time.Time
	live map[string]ack // by node
}

// loss is what the last restore or deletion excuses.
type loss struct {
	at      time.Time
	again   map[string]bool // a certificate may be issued once more
	account bool
}

// seeWrite looks at what is about to be written.
func (w *world) seeWrite(c *commit, op store.Op) {
	old, _ := w.data.Get(context.Background(), op.Key)
	switch r := op.Record.(type) {
	case nil:
		w.seeDelete(c, op.Key, old.Record)
	case *store.Challenges:
		pub := publication{c.p, time.Now(), map[string]ack{}}
		for node, a := range w.acks {
			pub.live[node] = a
		}
		w.published[r.Name] = pub
	case *store.Order:
		w.seeOrder(r, old.Record)
	case *store.Certificate:
		w.seeStored(r, old.Record)
	case *store.Wanted:
		if have, ok := old.Record.(*store.Wanted); !r.RenewAsked.IsZero() && (!ok || !have.RenewAsked.Equal(r.RenewAsked)) {
			w.renews[r.Name] = append(w.renews[r.Name], r.RenewAsked)
		}
	}
}

// seeDelete: nothing is deleted but what is over.
func (w *world) seeDelete(c *commit, key store.Key, old store.Record) {
	switch old := old.(type) {
	case *store.Certificate, *store.Account, *store.Wanted, *store.Demand:
		w.fail("%s deletes %s", c.p.id, key)
	case *store.Order:
		stored := slices.ContainsFunc(c.ops, func(op store.Op) bool { return op.Key == store.Key{Kind: store.KindIssued, Name: key.Name} })
		if o := w.ca.find(old.URL); o != nil && !stored && !w.over(o) {
			w.fail("%s drops order %d, which is %s", c.p.id, o.number, o.status)
		}
	}
}

// over reports whether nothing more can or needs to come of a recorded order.
func (w *world) over(o *order) bool {
	return w.ca.dead(o) || o.kept || o.cert != nil && !o.cert.notAfter.After(time.Now()) || w.loss.at.After(o.recorded)
}

// seeOrder: everybody stays on the recorded order.
func (w *world) seeOrder(r *store.Order, old store.Record) {
	o := w.ca.find(r.URL)
	if o == nil {
		return
	}
	if have, ok := old.(*store.Order); ok && have.URL != "" && have.URL != r.URL {
		if before := w.ca.find(have.URL); before != nil && !w.over(before) {
			w.fail("order %d takes the place of order %d, which is %s", o.number, before.number, before.status)
		}
	}
	if o.recorded.IsZero() {
		o.recorded = time.Now()
		for _, other := range w.ca.orders {
			if other != o && other.name == o.name && !other.recorded.IsZero() && !w.over(other) {
				w.fail("orders %d and %d for %s overlap: the first is %s", other.number, o.number, o.name, other.status)
			}
		}
	}
}

// seeStored: what is stored is of the CA, and not older than what was.
func (w *world) seeStored(r *store.Certificate, old store.Record) {
	c := w.ca.serial(r.Serial)
	if c == nil || c.order.name != r.Name {
		w.fail("certificate %s has serial %s, which is not of the CA", r.Name, r.Serial)
		return
	}
	c.order.kept = true
	if have, ok := old.(*store.Certificate); ok && r.NotBefore.Before(have.NotBefore) && time.Now().Before(have.NotAfter) {
		w.fail("certificate %s: serial %s is stored over %s, which is newer", r.Name, r.Serial, have.Serial)
	}
}

// seeSwap: nothing worse is served.
func (w *world) seeSwap(n *node, name string, b *store.Bundle) {
	old, now := n.served[name], time.Now()
	if old != nil && old.Fingerprint == b.Fingerprint {
		return
	}
	c := w.ca.serial(b.Serial)
	switch {
	case c == nil || c.order.name != name:
		w.fail("%s serves serial %s as %s", n.name, b.Serial, name)
	case old != nil && old.NotAfter.After(now) && (!b.NotAfter.After(now) || b.NotBefore.Before(old.NotBefore)):
		w.fail("%s serves %s with serial %s, which is worse than %s", n.name, name, b.Serial, old.Serial)
	}
	n.served[name] = b
	w.trace.add("%s serves %s, serial %s", n.name, name, b.Serial)
}

// seePlaced: with nothing dying, every order comes to a certificate.
func (w *world) seePlaced(o *order) {
	for _, other := range w.ca.orders {
		if w.chaos.nothingDies && other.name == o.name && other.cert == nil {
			w.fail("%s places order %d for %s, and nothing came of order %d, although nothing died", o.by, o.number, o.name, other.number)
		}
	}
}

// seeRequest: the CA is asked under a lease only, and about recorded orders; tokens are where they have to be before it is told to look.
func (w *world) seeRequest(p *process, r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.lease == nil || p.lease.ended() {
		w.fail("%s sends %s without a lease", p.id, r)
	}
	if l := p.lease; l != nil && l.real != nil && time.Since(time.Unix(0, l.renewed.Load())) > ttl+clockEvery {
		w.fail("%s sends %s although its session was not renewed in time", p.id, r)
	}
	if !r.ofOrder() || r.number >= len(w.ca.orders) || p.lease != w.holder {
		return
	}
	o := w.ca.orders[r.number]
	if o.recorded.IsZero() {
		w.fail("%s sends %s of an order that is in no record", p.id, r)
	}
	if r.op != "challenge" {
		return
	}
	pub, ok := w.published[o.name]
	if !ok || pub.by != p {
		w.fail("%s sends %s and has not published its token", p.id, r)
	}
	if w.loss.at.After(pub.at) {
		return // the tokens may be gone, and with nothing else lost the leader hears of it when it writes next
	}
	for node, was := range pub.live {
		_, suspect := p.suspects[node]
		q, is := was.p, w.acks[node]
		if q.dead || suspect || is.p != q || is.session != was.session { // who left and is back looks a second time
			continue
		}
		if _, ok := q.table.Lookup(o.tokens[r.part]); !ok {
			w.fail("%s sends %s although %s has not the token", p.id, r, q.id)
		}
	}
}

// clockEvery is how late a lease may end by the clock.
const clockEvery = 150 * time.Millisecond

func (w *world) seeAccount(by string, n int) {
	if n > 0 {
		if !w.loss.account {
			w.fail("%s makes account %d", by, n+1)
		}
		w.loss.account = false
	}
}

// seeIssue: one certificate for each decision.
func (w *world) seeIssue(c *issued) {
	o := c.order
	if o.recorded.IsZero() {
		w.fail("order %d is finalized and is in no record", o.number)
	}
	last := w.last[o.name]
	w.last[o.name] = c
	w.count.certificates++
	if why := w.decision(last, c); why != "" {
		w.trace.add("decision: %s: %s", o.name, why)
		return
	}
	if n := w.has(last); n != nil {
		w.fail("certificate %d of %s, order %d, is ordered although %s has %d", c.serial, o.name, o.number, n.name, last.serial)
	}
	if w.loss.again[o.name] {
		delete(w.loss.again, o.name)
		w.count.afterLoss++
		return
	}
	w.fail("certificate %d of %s, order %d, comes of no decision of its own: serial %d was issued at %s",
		c.serial, o.name, o.number, last.serial, last.at.Sub(w.start))
}

// has returns a node that could have offered a certificate: whoever orders another one has to ask it.
func (w *world) has(c *issued) *node {
	for _, n := range w.nodes {
		p, b := n.p, n.disk[c.order.name]
		if p != nil && p.healthy() && w.acks[n.name].p == p && time.Since(p.since) > 2*time.Minute && b != nil && w.ca.serial(b.Serial) == c {
			return n
		}
	}
	return nil
}

// decision says why a certificate may follow another one.
func (w *world) decision(last, c *issued) string {
	name := c.order.name
	if last == nil {
		return "first"
	}
	for _, d := range c.order.domains {
		if !slices.Contains(last.order.domains, d) {
			return "names"
		}
	}
	if slices.ContainsFunc(w.renews[name], func(at time.Time) bool { return at.After(last.at) }) {
		return "asked"
	}
	life := last.notAfter.Sub(last.notBefore)
	left := life / 3
	if life < 10*24*time.Hour {
		left = life / 2
	}
	if !c.at.Before(last.notAfter.Add(-left - left/10 - time.Second)) {
		return "renewal"
	}
	return ""
}

// find returns the order under a URL, nil when there is none.
func (ca *authority) find(url string) *order {
	for _, o := range ca.orders {
		if o.url() == url {
			return o
		}
	}
	return nil
}

// serial returns the certificate of a serial number in hex.
func (ca *authority) serial(hex string) *issued {
	n, err := strconv.ParseInt(hex, 16, 64)
	if err != nil {
		return nil
	}
	for _, o := range ca.orders {
		if o.cert != nil && o.cert.serial == int(n) {
			return o.cert
		}
	}
	return nil
}
