package simulation

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// world is one run: the nodes, what they share, the CA, and what goes wrong.
type world struct {
	dice   dice
	chaos  chaos
	trace  *trace
	start  time.Time
	healed atomic.Bool // nothing goes wrong any more

	mu        sync.Mutex
	nodes     []*node
	ca        *authority
	data      *storetest.Memory // what is stored; in runs with Consul a picture of it
	server    *server           // Consul; nil in runs without
	dir       string            // of what nodes keep of it
	holder    *lease            // of the lock, as the store knows it
	acks      map[string]ack
	changed   chan struct{} // closed when lock or acks change
	terms     int
	snapshots []snapshot

	published map[string]publication
	renews    map[string][]time.Time
	last      map[string]*issued
	parsed    map[string]*store.Bundle
	calm      map[string]bool // certificates that were as they should be after everything was healed
	loss      loss
	problems  []string
	count     counts
	faults    [len(faults)]atomic.Int64
	happened  census // events
	steps     atomic.Int64
}

// counts is what happened, to see that runs are about something.
type counts struct {
	certificates, orders, terms, late, refusedNames, afterLoss, hits int
	steps                                                            int64 // calls of the store and requests to the CA
	converged                                                        time.Duration
	census                                                           census
}

type snapshot struct {
	restore func()
	account bool
}

func newWorld(seed uint64, tr *trace, withConsul bool) *world {
	pause(24 * time.Hour) // certificates are dated back, and a bubble's time begins with the year 2000
	w := &world{
		dice: dice(seed * 0x9e3779b97f4a7c15), trace: tr, start: time.Now(), data: storetest.NewMemory(),
		acks: map[string]ack{}, changed: make(chan struct{}), published: map[string]publication{},
		renews: map[string][]time.Time{}, last: map[string]*issued{}, parsed: map[string]*store.Bundle{}, calm: map[string]bool{}, loss: loss{again: map[string]bool{}}, happened: census{},
	}
	if tr != nil {
		tr.start = w.start
	}
	if withConsul {
		w.server = newServer(w)
	}
	w.chaos = newChaos(w.dice)
	lives := []time.Duration{15 * time.Minute, time.Hour, 90 * 24 * time.Hour}
	w.ca = &authority{w: w, life: lives[w.dice.roll(int64(len(lives)), "life", 0)]}
	want := map[string]store.Spec{}
	for i := range 1 + w.dice.roll(3, "certificates", 0) {
		name := fmt.Sprint("c", i)
		want[name] = store.Spec{Domains: domains(name, int(w.dice.roll(3, "names", int(i))))}
	}
	for i := range 2 + w.dice.roll(4, "nodes", 0) {
		n := &node{w: w, name: fmt.Sprint("lb", i), served: map[string]*store.Bundle{}, disk: map[string]*store.Bundle{}, want: maps.Clone(want),
			copy: storetest.NewMemory(), offers: map[string]*store.Certificate{}}
		n.edge = i > 1 && w.dice.chance(300, "edge", int(i))
		w.nodes = append(w.nodes, n)
	}
	w.trace.add("chaos %+v", w.chaos)
	return w
}

// domains returns 1+more names of a certificate.
func domains(name string, more int) []string {
	all := []string{name + ".example"}
	for i := range more {
		all = append(all, fmt.Sprintf("n%d.%s.example", i, name))
	}
	return all
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail(format, args...)
}

// fail notes a broken promise. w.mu is held.
func (w *world) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace.add("BROKEN: %s", text)
	w.problems = append(w.problems, fmt.Sprintf("at %s: %s", time.Since(w.start), text))
}

// run lets a run happen, and returns what was wrong.
func (w *world) run() []string {
	if w.server != nil {
		defer w.stateDirs()()
	}
	for i, n := range w.nodes {
		time.AfterFunc(w.dice.span(10*time.Second, "first start", i), n.start)
	}
	pause(10 * time.Second)
	w.disturb()
	w.heal()
	w.settle()
	for _, n := range w.nodes {
		n.p.terminate()
	}
	pause(5 * time.Minute) // what is under way arrives
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.terms, w.count.orders, w.count.steps, w.count.census = w.terms, len(w.ca.orders), w.steps.Load(), w.census()
	return w.problems
}

// heal ends everything that goes wrong.
func (w *world) heal() {
	w.trace.add("everything is healed")
	w.healed.Store(true)
	w.mu.Lock()
	w.ca.down = false
	for _, n := range w.nodes {
		n.p.proceed()
		n.p.mend()
	}
	want := w.nodes[0].want
	w.mu.Unlock()
	for _, n := range w.nodes {
		w.mu.Lock()
		p := n.p
		dead := p.dead
		n.want = maps.Clone(want)
		w.mu.Unlock()
		if dead {
			n.follow(p)
		}
		n.p.poke()
	}
}

func (p *process) poke() {
	select {
	case p.poked <- struct{}{}:
	default:
	}
}

// settled ends the trace of a run that went well.
const settled = "everything is as it should be"

const (
	patience = 10 * time.Minute // for convergence, beyond the pauses that are stored when everything is healed
	outage   = 70 * time.Minute // the longest pause that is not stored: after failures of the CA
)

// settle waits until everything is as it should be.
func (w *world) settle() {
	healed := time.Now()
	until := healed.Add(outage)
	w.mu.Lock()
	for _, e := range w.all(store.KindAttempt) {
		a := e.Record.(*store.Attempt)
		// A try that goes on with an order may find that it failed long ago, and has to wait once more.
		if at := a.Next.Add(min(4*a.Next.Sub(a.Tried), 27*time.Hour)); at.After(until) {
			until = at
		}
	}
	w.mu.Unlock()
	for wait := 5 * time.Second; ; wait = min(wait*5/4, 5*time.Minute) {
		w.mu.Lock()
		left := w.unsettled()
		w.mu.Unlock()
		if left == "" {
			w.count.converged = time.Since(healed)
			w.trace.add("%s", settled)
			return
		}
		if time.Now().After(until.Add(patience)) {
			w.problem("not as it should be %s after everything was healed: %s", time.Since(healed), left)
			return
		}
		pause(wait)
	}
}

func (w *world) all(kind store.Kind) []store.Entry {
	l, err := w.data.List(context.Background(), kind)
	if err != nil || len(l.Unreadable) > 0 {
		w.fail("%s: %v %v", kind, err, l.Unreadable)
	}
	return l.Entries
}

// unsettled says what is not as it should be. What once was counts from then on: renewals go on. w.mu is held.
func (w *world) unsettled() string {
	if w.holder == nil || len(w.acks) != len(w.nodes) {
		return "nobody leads, or somebody is not live"
	}
	for _, e := range w.all(store.KindRequest) {
		if e.Record.(*store.Request).Done.IsZero() {
			return "a request is open"
		}
	}
	for name, spec := range w.nodes[0].want {
		if w.calm[name] {
			continue
		}
		if left := w.differs(name, spec); left != "" {
			return name + " " + left
		}
		w.calm[name] = true
	}
	return ""
}

// differs says what is not as it should be with one certificate.
func (w *world) differs(name string, spec store.Spec) string {
	for _, kind := range []store.Kind{store.KindOrder, store.KindChallenges} {
		e, _ := w.data.Get(context.Background(), store.Key{Kind: kind, Name: name})
		if e.Record != nil {
			return "has a record left: " + string(kind)
		}
	}
	e, _ := w.data.Get(context.Background(), store.Key{Kind: store.KindIssued, Name: name})
	c, ok := e.Record.(*store.Certificate)
	if !ok || !c.NotAfter.After(time.Now()) {
		return "is not issued, or expired"
	}
	if slices.ContainsFunc(spec.Domains, func(d string) bool { return !slices.Contains(c.Domains, d) }) {
		return "has not all names"
	}
	if asked := w.renews[name]; len(asked) > 0 && w.loss.at.IsZero() && c.IssuedAt.Before(asked[len(asked)-1]) {
		return "was not renewed"
	}
	for _, n := range w.nodes {
		b := n.served[name]
		if b == nil || b.Fingerprint != c.Fingerprint && !(!w.loss.at.IsZero() && b.NotBefore.After(c.NotBefore)) {
			return "is not served by " + n.name
		}
	}
	return ""
}
