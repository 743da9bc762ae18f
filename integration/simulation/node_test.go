package simulation

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// node is a machine: its HAProxy, its disk, its haproxy.cfg, and the sidecar process of the moment.
type node struct {
	w      *world
	name   string
	edge   bool // never leads
	p      *process
	starts int
	served map[string]*store.Bundle // by HAProxy
	disk   map[string]*store.Bundle
	want   map[string]store.Spec
	copy   *storetest.Memory             // what it keeps of the store
	offers map[string]*store.Certificate // in the store
}

// process is one life of a sidecar. Its fields are guarded by world.mu.
type process struct {
	w      *world
	node   *node
	id     string // "lb1#2"
	store  shared // the process itself in runs without Consul
	cancel context.CancelFunc
	done   chan struct{} // closed when all of it has ended
	poked  chan struct{} // haproxy.cfg changed

	died    chan struct{}
	dead    bool
	stopped chan struct{} // closed when it goes on; nil while it runs
	uncut   chan struct{} // closed when the store is in reach again; nil while it is
	cut     bool
	ending  bool // it was asked to

	sick   int  // odd while its sessions are not renewed
	lapsed bool // they were not for so long that the process has to give them up

	lease    *lease // the last one
	member   bool   // it has acked
	acked    uint64
	suspects map[string]uint64
	table    spoa.Table

	ctx   context.Context
	since time.Time                     // it is well
	known map[string]*store.Certificate // what is stored, as it knows
	shelf *issuer.Shelf
	mute  map[string]bool // nodes that did not answer a question
}

// healthy reports whether its sessions are renewed. w.mu is held.
func (p *process) healthy() bool { return !p.dead && p.stopped == nil && !p.cut }

// start runs the first process.
func (n *node) start() { n.follow(nil) }

// follow runs a new process after p, unless somebody did.
func (n *node) follow(p *process) {
	w := n.w
	w.mu.Lock()
	if n.p != p {
		w.mu.Unlock()
		return
	}
	n.starts++
	ctx, cancel := context.WithCancel(context.Background())
	p = &process{
		w: w, node: n, id: n.name + "#" + strconv.Itoa(n.starts), cancel: cancel, done: make(chan struct{}),
		poked: make(chan struct{}, 1), died: make(chan struct{}), suspects: map[string]uint64{},
	}
	p.ctx, p.since, p.known, p.mute = ctx, time.Now(), map[string]*store.Certificate{}, map[string]bool{}
	p.store = p
	if w.server != nil {
		p.store = p.openConsul()
	}
	p.shelf = p.newShelf()
	n.p = p
	w.trace.add("%s starts", p.id)
	w.mu.Unlock()
	go p.run(ctx)
}

// run returns when everything of the process has.
func (p *process) run(ctx context.Context) {
	defer close(p.done)
	g, ctx := errgroup.WithContext(ctx)
	if w := p.w; w.server == nil && p.retire(ctx) != nil {
		return
	}
	g.Go(func() error { return p.store.Run(ctx) })
	g.Go(func() error { return p.tokens(ctx) })
	g.Go(func() error { return p.deploy(ctx) })
	g.Go(func() error { return p.demand(ctx) })
	g.Go(func() error { return p.shelf.Run(ctx) })
	if !p.node.edge {
		g.Go(func() error { return issuer.KeepCopy(ctx, p.store, p.node.copy, p.log()) })
		g.Go(func() error { return p.issue(ctx) })
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		p.w.problem("%s ended: %v", p.id, err)
	}
}

// retire ends the session of the node's last process.
func (p *process) retire(ctx context.Context) error {
	pause(p.w.dice.span(20*time.Millisecond, p.id+" retires", 0))
	if err := p.reach(ctx); err != nil {
		return err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if a := p.w.acks[p.node.name]; a.p != p {
		delete(p.w.acks, p.node.name)
		p.w.wake()
	}
	return nil
}

func (p *process) issue(ctx context.Context) error {
	cfg := issuer.Config{
		Store: p.store, Settings: issuer.Settings{CAs: []issuer.CA{{Directory: "https://ca.example/directory"}}, HTTP: &http.Client{Transport: line{p}}},
		Fleet: p.store, Disk: p.onDisk, Copy: p.node.copy, Jitter: p.jitter, Logger: p.log(),
	}
	i, err := issuer.New(cfg)
	if err != nil {
		return err
	}
	return i.Run(ctx)
}

func (p *process) jitter(d time.Duration) time.Duration {
	return time.Duration(p.w.dice.roll(int64(d), p.id+" jitter", p.w.now()))
}

func (p *process) log() *slog.Logger {
	if p.w.trace == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(p.w.trace, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: untimed})).With("node", p.id)
}

// untimed drops from logs what the trace has already, and what differs from run to run.
func untimed(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// again calls f until it works, ctx ends or the process dies.
func (p *process) again(ctx context.Context, f func() error) {
	for n := 1; f() != nil; n++ {
		if p.sleep(ctx, min(time.Duration(n)*300*time.Millisecond, 5*time.Second)) != nil {
			return
		}
	}
}

// tokens keeps the table, and acks what is in it.
func (p *process) tokens(ctx context.Context) error {
	applied := make(chan uint64, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return p.store.Follow(ctx, func([]store.Key) {
			p.again(ctx, func() error {
				l, err := p.store.List(ctx, store.KindChallenges)
				if err != nil {
					return err
				}
				generation := p.fill(l)
				select {
				case <-applied:
				default:
				}
				applied <- generation
				return nil
			})
		}, store.KindChallenges)
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case generation := <-applied:
				_ = p.store.Ack(ctx, generation) // fails only when everything ends
			}
		}
	})
	return g.Wait()
}

// fill makes the table what was read.
func (p *process) fill(l store.Listing) (generation uint64) {
	orders := map[string]map[string]string{}
	for _, e := range l.Entries {
		c := e.Record.(*store.Challenges)
		generation = max(generation, c.Generation)
		orders[c.Name] = map[string]string{}
		for _, token := range c.Tokens {
			orders[c.Name][token] = token + "." + c.Thumbprint
		}
	}
	if err := p.table.Replace(generation, orders); err != nil {
		p.w.problem("%s: %v", p.id, err)
	}
	return generation
}

// ask is what the CA gets for a token at one of the places that the names lead to. The agent of another node stands in
// for one that is down. w.mu is held.
func (w *world) ask(token string, place int) string {
	for i := range w.nodes {
		p := w.nodes[(place+i)%len(w.nodes)].p
		switch {
		case p == nil || p.dead:
			continue
		case p.stopped != nil:
			return p.id + " does not answer"
		}
		if auth, ok := p.table.Lookup(token); ok {
			return auth
		}
		if p.cut {
			return p.id + " does not know it"
		}
		l, err := w.data.List(context.Background(), store.KindChallenges) // the second look
		if err != nil {
			return err.Error()
		}
		for _, e := range l.Entries {
			if c := e.Record.(*store.Challenges); slices.Contains(c.Tokens, token) {
				return token + "." + c.Thumbprint
			}
		}
		return p.id + " does not find it"
	}
	return "nobody is there"
}

// demand keeps this node's wishes in the store.
func (p *process) demand(ctx context.Context) error {
	key := store.Key{Kind: store.KindDemand, Name: p.node.name}
	keep := func() {
		p.again(ctx, func() error {
			e, err := p.store.Get(ctx, key)
			if err != nil && !errors.Is(err, store.ErrAbsent) {
				return err
			}
			p.w.mu.Lock()
			want := maps.Clone(p.node.want)
			p.w.mu.Unlock()
			if have, ok := e.Record.(*store.Demand); ok && reflect.DeepEqual(have.Certificates, want) {
				return nil
			}
			d := &store.Demand{Node: p.node.name, Certificates: want, Since: time.Now().UTC().Truncate(time.Second)}
			return p.store.Commit(ctx, nil, []store.Precondition{{Key: key, Revision: e.Revision}}, []store.Op{store.Put(d)})
		})
	}
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	g.Go(func() error {
		return p.store.Follow(ctx, func([]store.Key) {
			select {
			case changed <- struct{}{}:
			default:
			}
		}, store.KindDemand)
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-p.poked:
			}
			keep()
		}
	})
	return g.Wait()
}

// deploy brings certificates to disk and HAProxy.
func (p *process) deploy(ctx context.Context) error {
	w, n := p.w, p.node
	w.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(n.disk)) {
		w.seeSwap(n, name, n.disk[name])
	}
	w.mu.Unlock()
	return p.store.Follow(ctx, func(keys []store.Key) {
		p.again(ctx, func() error {
			certs, err := p.read(ctx, keys)
			p.learn(keys, certs, err)
			for _, c := range certs {
				p.swap(ctx, c)
			}
			if err != nil {
				keys = nil
			}
			return err
		})
	}, store.KindIssued)
}

// read reads the certificates under some keys, or all.
func (p *process) read(ctx context.Context, keys []store.Key) (certs []*store.Certificate, err error) {
	if keys == nil {
		l, err := p.store.List(ctx, store.KindIssued)
		for _, e := range l.Entries {
			certs = append(certs, e.Record.(*store.Certificate))
		}
		return certs, err
	}
	for _, k := range keys {
		e, err := p.store.Get(ctx, k)
		if errors.Is(err, store.ErrAbsent) {
			continue // what is served stays
		}
		if err != nil {
			return certs, err
		}
		certs = append(certs, e.Record.(*store.Certificate))
	}
	return certs, nil
}

// bundle parses what was stored, once for all nodes.
func (w *world) bundle(c *store.Certificate) (*store.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := c.Chain + string(c.Private.Reveal())
	if b := w.parsed[key]; b != nil {
		return b, nil
	}
	b, err := c.Bundle()
	if err == nil {
		w.parsed[key] = b
	}
	return b, err
}

// swap brings one certificate onto the disk, if it is not worse, and into HAProxy a moment later.
func (p *process) swap(ctx context.Context, c *store.Certificate) {
	w, n := p.w, p.node
	b, err := w.bundle(c)
	if err != nil {
		w.problem("%s: the stored certificate %s is no good: %v", p.id, c.Name, err)
		return
	}
	if p.gate() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := b.Worse(n.disk[c.Name], time.Now()); err != nil {
		w.trace.add("%s: %s: %v", p.id, c.Name, err)
		return
	}
	n.disk[c.Name] = b
	w.mu.Unlock()
	err = errors.Join(p.sleep(ctx, w.dice.span(20*time.Millisecond, p.id+" swaps "+c.Name, w.now())), p.gate())
	w.mu.Lock()
	if err == nil {
		w.seeSwap(n, c.Name, n.disk[c.Name])
	}
}
