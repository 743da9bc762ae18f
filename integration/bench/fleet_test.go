package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/seal"
	"github.com/spoacme/spoacme/store/storetest"
)

// fleet is nodes that share one Consul: at first those with a HAProxy and a sidecar, each a process of its own, then
// stand-ins. The leader is the store in this process: it issues nothing and writes what it is told.
type fleet struct {
	b        testing.TB
	consul   *fixture.Consul
	ca       *storetest.CA
	all      []*store.Certificate
	bundles  map[string][]byte
	dir      string // of keysets and scripts
	keys     *seal.Keys
	leader   *consul.Store
	lease    store.Lease
	nodes    []*fleetNode
	standins []*standin
	checks   bool // stand-ins check what they fetch
	acksOnly bool // stand-ins follow tokens and fetch nothing

	generation uint64 // of the tokens published last
}

// fleetNode is a HAProxy with its sidecar.
type fleetNode struct {
	haproxy *fixture.HAProxy
	sidecar *fixture.Sidecar
}

// mayLead is how many of the nodes may lead; the others are edges.
const mayLead = 3

// newFleet starts the servers, and nothing else.
func newFleet(b testing.TB, servers int, ca *storetest.CA, all []*store.Certificate) *fleet {
	b.Helper()
	f := &fleet{b: b, ca: ca, all: all, checks: true, bundles: map[string][]byte{}}
	var err error
	if f.dir, err = os.MkdirTemp("", "spoacme"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(f.dir) })
	f.consul = fixture.StartConsul(b, fixture.ConsulOptions{Servers: servers})
	for _, c := range all {
		bundle, err := c.Bundle()
		if err != nil {
			b.Fatal(err)
		}
		f.bundles[c.Name] = bundle.PEM()
	}
	return f
}

// startFleet starts the servers and the leader, and stores the certificates.
func startFleet(b testing.TB, servers int, ca *storetest.CA, all []*store.Certificate) *fleet {
	b.Helper()
	f := newFleet(b, servers, ca, all)
	f.makeKeys()
	f.leader = f.open("leader", consul.RoleIssuer)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if f.lease, err = f.leader.Lead(ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(f.lease.Release)
	f.fill()
	return f
}

func (f *fleet) makeKeys() {
	var err error
	var texts [2][]byte
	for i, name := range []string{"fleet.json", "issuer.json"} {
		if texts[i], err = seal.New(); err == nil {
			err = os.WriteFile(filepath.Join(f.dir, name), texts[i], 0o600)
		}
		if err != nil {
			f.b.Fatal(err)
		}
	}
	if f.keys, err = seal.Load(texts[0], texts[1]); err != nil {
		f.b.Fatal(err)
	}
}

// address is where the i-th node finds Consul: they take the servers in turn.
func (f *fleet) address(i int) string {
	return "consul://" + f.consul.Servers[i%len(f.consul.Servers)].HTTP.Addr() + "/le"
}

func (f *fleet) open(node string, role consul.Role) *consul.Store {
	i := len(f.nodes) + len(f.standins)
	s, err := consul.Open(consul.Config{URL: f.address(i), Node: node, Role: role, Keys: f.keys, Getenv: func(string) string { return "" }})
	if err != nil {
		f.b.Fatal(err)
	}
	return s
}

// fill stores the certificates and what wants them.
func (f *fleet) fill() {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for _, c := range f.all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			wanted := &store.Wanted{Name: c.Name, Spec: store.Spec{Domains: c.Domains}, Generation: c.Generation, IssuedByHand: true}
			if err := f.leader.Commit(context.Background(), f.lease, nil, []store.Op{store.Put(c), store.Put(wanted)}); err != nil {
				f.b.Error(err)
			}
		})
	}
	wg.Wait()
}

// grow adds nodes, so many of all with a HAProxy, and returns when all take part and are up to date.
func (f *fleet) grow(count, real int) {
	f.b.Helper()
	first := len(f.nodes)
	f.nodes = append(f.nodes, make([]*fleetNode, max(real-first, 0))...)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for i := first; i < len(f.nodes); i++ {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f.nodes[i] = f.startNode(i, f.bundles)
		})
	}
	wg.Wait()
	for len(f.nodes)+len(f.standins) < count {
		f.standins = append(f.standins, f.startStandin())
	}
	for i, n := range f.nodes[first:] {
		if err := compared(context.Background(), n.sidecar, len(f.all)); err != nil {
			f.b.Fatalf("node %d: %v\n%s", first+i, err, n.sidecar.Log())
		}
	}
	f.calm()
	f.await(2*time.Minute, "all nodes are live", func() bool {
		list, err := f.leader.Nodes(context.Background())
		behind := slices.ContainsFunc(list, func(n consul.Node) bool { return !n.Live || n.Behind })
		return err == nil && len(list) == count && !behind
	})
}

// calm returns when no sidecar asks much of Consul any more: those that may lead make a copy first.
func (f *fleet) calm() {
	f.b.Helper()
	before := f.traffic()
	f.await(3*time.Minute, "the sidecars have everything", func() bool {
		settle(context.Background(), time.Second)
		now := f.traffic()
		busy := slices.ContainsFunc(now, func(t traffic) bool { return t.calls > before[t.node].calls+5 })
		before = now
		return !busy
	})
}

// startNode starts a HAProxy that has certificates on disk, and its sidecar.
func (f *fleet) startNode(i int, bundles map[string][]byte) *fleetNode {
	set := none()
	set["SPOACME_STORE"], set["SPOACME_NODE"], set["SPOACME_ROLE"] = f.address(i), fmt.Sprintf("lb%d", i+1), "edge"
	env := []string{"SPOACME_FLEET_KEYS=" + filepath.Join(f.dir, "fleet.json")}
	if i < mayLead {
		set["SPOACME_ROLE"] = "node"
		env = append(env, "SPOACME_ISSUER_KEYS="+filepath.Join(f.dir, "issuer.json"))
	}
	h := f.startHAProxy(set, bundles)
	return &fleetNode{h, fixture.StartSidecar(f.b, fixture.SidecarOptions{HAProxy: h, Env: env})}
}

// startHAProxy starts a HAProxy that has certificates on disk.
func (f *fleet) startHAProxy(set map[string]string, bundles map[string][]byte) *fixture.HAProxy {
	oneThread := func(text string) string { return strings.Replace(text, "global\n", "global\n    nbthread 1\n", 1) }
	h := fixture.StartHAProxy(f.b, fixture.HAProxyOptions{Version: "3.2", Settings: set, Edit: oneThread})
	err := enlist(h, bundles)
	if err == nil {
		err = h.Restart()
	}
	if err != nil {
		f.b.Error(err)
	}
	return h
}

func (f *fleet) await(limit time.Duration, what string, ok func() bool) {
	f.b.Helper()
	err := fixture.Await(context.Background(), limit, func() error {
		if !ok() {
			return errors.New(what + ": not so")
		}
		return nil
	})
	if err != nil {
		f.b.Fatal(err)
	}
}

// standin is what a sidecar is to its fleet, in this process: the store with its session, acks and watches, a token table,
// and an index of what is issued. It fetches and checks what changes, and there is no HAProxy behind it.
type standin struct {
	*consul.Store
	checks  bool
	mu      sync.Mutex
	fetched map[string]time.Time // by fingerprint
}

func (f *fleet) startStandin() *standin {
	s := &standin{Store: f.open(fmt.Sprintf("lb%d", len(f.nodes)+len(f.standins)+1), consul.RoleEdge), checks: f.checks, fetched: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	runs := []func() error{
		func() error { return s.Run(ctx) },
		func() error { return s.Follow(ctx, func([]store.Key) { s.acknowledge(ctx) }, store.KindChallenges) },
	}
	if !f.acksOnly {
		runs = append(runs, func() error {
			return s.Follow(ctx, func(keys []store.Key) { s.take(ctx, keys) }, store.KindWanted, store.KindIssued, store.KindAttempt, store.KindRequest)
		})
	}
	for _, run := range runs {
		wg.Go(func() {
			if err := run(); err != nil {
				f.b.Error(err)
			}
		})
	}
	f.b.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func (s *standin) acknowledge(ctx context.Context) {
	list, err := s.List(ctx, store.KindChallenges)
	if err != nil {
		return
	}
	var high uint64
	for _, e := range list.Entries {
		high = max(high, e.Record.(*store.Challenges).Generation)
	}
	_ = s.Ack(ctx, high) // it goes on trying
}

// take reads what changed. At the start it has everything: what is on disk is not fetched.
func (s *standin) take(ctx context.Context, keys []store.Key) {
	for _, k := range keys {
		e, err := s.Get(ctx, k)
		c, ok := e.Record.(*store.Certificate)
		if err != nil || !ok {
			continue
		}
		if s.checks {
			if _, err := c.Bundle(); err != nil {
				continue
			}
		}
		s.mu.Lock()
		s.fetched[c.Fingerprint] = time.Now()
		s.mu.Unlock()
	}
}

func (s *standin) when(fingerprint string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetched[fingerprint]
}
