package simulation

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// event is something that goes wrong, or that people do, with how often it happens.
type event struct {
	name     string
	weight   int64
	loses    bool // only in runs where the store loses something
	harmless bool // also in runs where nothing dies
	do       func(w *world, i int, n *node, d time.Duration)
}

// events are told apart by number; n is a node and d a time for them.
func (w *world) events() []event {
	all := []event{
		{name: "node killed", weight: 5, do: (*world).crash},
		{name: "node restarted", weight: 3, do: (*world).restart},
		{name: "node frozen", weight: 5, do: (*world).freeze},
		{name: "node cut off", weight: 4, do: (*world).isolate},
		{name: "store down", weight: 2, do: (*world).storeDown},
		{name: "CA down", weight: 2, do: (*world).caDown},
		{name: "lock taken", weight: 4, do: (*world).unlock},
		{name: "node forgotten", weight: 2, do: (*world).forgetNode},
		{name: "names changed", weight: 4, harmless: true, do: (*world).rename},
		{name: "renew asked", weight: 4, harmless: true, do: (*world).renew},
		{name: "HAProxy restarted", weight: 1, harmless: true, do: (*world).restartHAProxy},
		{name: "store restored", weight: 5, loses: true, do: (*world).restore},
		{name: "all deleted", weight: 1, loses: true, do: (*world).deleteAll},
	}
	if w.server != nil {
		all = append(all, event{name: "Consul elects", weight: 4, do: (*world).elect})
	}
	return all
}

// disturb lets everything go wrong that this run has. The leader is what is hit most.
func (w *world) disturb() {
	span := 2*time.Minute + w.dice.span(20*time.Minute, "span", 0)
	if w.chaos.events == 0 {
		span /= 4
	}
	all, total := w.events(), int64(0)
	for _, e := range all {
		total += e.weight
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range w.chaos.events {
		at := w.dice.span(span, "event", i)
		if w.dice.chance(500, "event early", i) {
			at = w.dice.span(20*time.Second, "event at", i)
		}
		pick := w.dice.roll(total, "event kind", i)
		e := all[0]
		for _, e = range all {
			if pick -= e.weight; pick < 0 {
				break
			}
		}
		if e.loses && !w.chaos.loss || w.chaos.nothingDies && !e.harmless {
			continue
		}
		wg.Go(func() {
			pause(at)
			w.mu.Lock()
			w.happened[e.name]++
			n := w.nodes[w.dice.roll(int64(len(w.nodes)), "event node", i)]
			if w.holder != nil && w.dice.chance(600, "event leader", i) {
				n = w.holder.p.node
			}
			if n.p == nil {
				w.mu.Unlock()
				return
			}
			w.mu.Unlock()
			d := w.dice.span(3*time.Second, "event short", i)
			if w.dice.chance(600, "event long", i) {
				d = w.dice.span(90*time.Second, "event time", i)
			}
			e.do(w, i, n, d)
		})
	}
	for k := range 4 {
		wg.Go(func() {
			pause(w.dice.span(span, "snapshot", k))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.snapshots = append(w.snapshots, snapshot{w.snapshot(), len(w.ca.accounts) > 0 && len(w.all(store.KindAccount)) > 0})
		})
	}
	pause(span)
}

func (w *world) crash(i int, n *node, d time.Duration) {
	w.mu.Lock()
	p := n.p
	if p.dead {
		w.mu.Unlock()
		return
	}
	p.kill()
	w.mu.Unlock()
	<-p.done
	pause(d)
	n.follow(p)
}

func (w *world) restart(i int, n *node, d time.Duration) {
	w.mu.Lock()
	p := n.p
	ending := p.dead || p.ending
	p.ending = true
	w.mu.Unlock()
	if ending {
		return
	}
	p.terminate()
	<-p.done
	pause(d / 10)
	n.follow(p)
}

func (w *world) freeze(i int, n *node, d time.Duration) {
	w.mu.Lock()
	p := n.p
	p.stop()
	w.mu.Unlock()
	pause(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	p.proceed()
}

func (w *world) isolate(i int, n *node, d time.Duration) {
	w.mu.Lock()
	p := n.p
	p.cutOff()
	w.mu.Unlock()
	pause(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	p.mend()
}

func (w *world) storeDown(i int, _ *node, d time.Duration) {
	var hit []*process
	w.mu.Lock()
	for _, n := range w.nodes {
		if n.p != nil {
			n.p.cutOff()
			hit = append(hit, n.p)
		}
	}
	w.mu.Unlock()
	pause(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range hit {
		p.mend()
	}
}

func (w *world) caDown(i int, _ *node, d time.Duration) {
	w.mu.Lock()
	w.ca.down = true
	w.trace.add("CA: down")
	w.mu.Unlock()
	pause(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ca.down = false
	w.trace.add("CA: up")
}

// unlock takes the lock from a leader that does not know.
func (w *world) unlock(i int, _ *node, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server != nil && w.holder != nil {
		w.trace.add("store: somebody destroys %s", w.holder.session)
		w.server.destroy(w.holder.session)
		return
	}
	w.free(w.holder, "its session was destroyed")
}

// forgetNode ends a node's session, which the node notices later.
func (w *world) forgetNode(i int, n *node, d time.Duration) {
	w.mu.Lock()
	if w.server != nil {
		w.server.destroy(w.server.holder(prefix + "ack/" + n.name))
		w.mu.Unlock()
		return
	}
	p := n.p
	delete(w.acks, n.name)
	w.wake()
	w.mu.Unlock()
	pause(d % ttl)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.register(p)
}

// rename changes the names of a certificate in every haproxy.cfg, one after the other.
func (w *world) rename(i int, _ *node, d time.Duration) {
	name := fmt.Sprint("c", w.dice.roll(3, "rename", i))
	spec := store.Spec{Domains: domains(name, int(w.dice.roll(4, "rename names", i)))}
	w.trace.add("people want %s for %v", name, spec.Domains)
	for k, n := range w.nodes {
		w.mu.Lock()
		n.want = maps.Clone(n.want)
		n.want[name] = spec
		p := n.p
		w.mu.Unlock()
		if p != nil {
			p.poke()
		}
		pause(w.dice.span(d/4+1, "rename pause", 10*i+k))
	}
}

// renew is the command of an operator.
func (w *world) renew(i int, _ *node, _ time.Duration) {
	r := &store.Request{ID: fmt.Sprint("r", i), Op: store.RequestRenew, Certificate: fmt.Sprint("c", w.dice.roll(2, "renew", i)), Asked: time.Now().UTC()}
	b, err := store.Encode(r, store.Plain{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.fail("request: %v", err)
	}
	w.trace.add("people ask to renew %s", r.Certificate)
	if w.server != nil {
		w.server.index++
		w.server.set(nil, prefix+r.Key().String(), b, 0, "")
		return
	}
	w.data.Edit(r.Key(), b)
}

// restartHAProxy starts a HAProxy with what is on its disk.
func (w *world) restartHAProxy(_ int, n *node, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, b := range n.disk {
		w.seeSwap(n, name, b)
	}
}

// restore puts the store back, with nobody's session.
func (w *world) restore(i int, _ *node, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.snapshots) == 0 {
		return
	}
	s := w.snapshots[w.dice.roll(int64(len(w.snapshots)), "restore", i)]
	w.trace.add("store: restored")
	s.restore()
	w.lost(!s.account)
}

// deleteAll is somebody with access to the store.
func (w *world) deleteAll(i int, _ *node, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace.add("store: everything is deleted")
	if w.server != nil {
		w.server.deleteAll()
		w.lost(true)
		return
	}
	var writes []store.Write
	for _, kind := range store.Kinds() {
		for _, e := range w.all(kind) {
			writes = append(writes, store.Write{Key: e.Key})
		}
	}
	w.data.EditAll(writes...)
	for _, n := range w.nodes {
		clear(n.offers)
	}
	w.lost(true)
}

// lost notes what a store that was set back excuses. w.mu is held.
func (w *world) lost(account bool) {
	w.loss.at = time.Now()
	w.loss.account = w.loss.account || account
	for name := range w.nodes[0].want {
		w.loss.again[name] = true
	}
	if w.server == nil {
		w.free(w.holder, "the store is another one")
	}
}

// snapshot is `consul snapshot save`, and what restores it. w.mu is held.
func (w *world) snapshot() (restore func()) {
	if w.server != nil {
		return w.server.snapshot()
	}
	return w.data.Snapshot()
}

// elect lets Consul's servers choose another leader of their own.
func (w *world) elect(_ int, _ *node, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace.add("store: its servers elect a leader")
	w.server.elect(d % (5 * time.Second))
}
