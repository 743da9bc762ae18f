package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/status"
)

// sidecar is everything that runs, with settings that can't change under it.
//
// Data flows one way: HAProxy's settings → demand → issuer → store → catalog → HAProxy; and
// challenges → token table → agent.
type sidecar struct {
	runner *runner
	log    *slog.Logger
	set    settings.Settings // as it began; certificates, place and, without a fleet, CAs may have changed since
	next   settings.Settings // with errAnew

	hap     *dataplane.HAProxy
	store   *records
	issuer  *issuer.Issuer
	catalog *catalog
	tokens  *tokens
	removal *removal
	fleet   *fleet        // nil without a fleet
	shelf   *issuer.Shelf // nil without a fleet
	table   *spoa.Table
	agent   *spoa.Agent
	aside   *aside        // nil without a fleet
	engine  chan struct{} // a new HAProxy process said HELLO: read the settings
	poked   chan struct{} // the same, for the rows
	metrics *prometheus.Registry
}

func newSidecar(r *runner, s settings.Settings) (*sidecar, error) {
	st, err := openStore(s, r.log)
	if err != nil {
		return nil, err
	}
	sc := &sidecar{
		runner: r, log: r.log, set: s, hap: r.hap, store: st, table: new(spoa.Table),
		engine: make(chan struct{}, 1), poked: make(chan struct{}, 1), metrics: prometheus.NewRegistry(),
	}
	st.keepCopy(s, r.log)
	sc.catalog = newCatalog(st, s.Role, r.log, sc.poke)
	sc.shelf = sc.newShelf()
	if st.fleet != nil {
		sc.fleet = newFleet(st.fleet, r.log, s.Node, sc.view, sc.poke)
	}
	if sc.hap != nil {
		sc.hap.SetPlace(s.CrtDir, s.CrtList)
	}
	sc.removal = newRemoval(r.hap, sc.catalog, r.log, s.State)
	sc.tokens = newTokens(st, sc.table, r.log, sc.reached, st.inStep)
	if st.fleet != nil && sc.hap != nil {
		sc.aside = &aside{log: r.log, reachable: st.reachable, servers: func(ctx context.Context) ([]dataplane.Row, error) {
			return sc.hap.Rows(ctx, s.AgentBackend)
		}}
	}
	sc.agent = spoa.New(spoa.Config{Table: sc.table, Miss: sc.tokens.miss, Engine: func(string) { sc.newProcess() },
		Fit: sc.aside.fit, Logger: r.log})
	if sc.issuer, err = sc.newIssuer(s); err != nil {
		return nil, errors.Join(err, st.close())
	}
	sc.register()
	return sc, nil
}

// poke makes HAProxy be looked at, for the named certificates or for all.
func (sc *sidecar) poke(names []string) {
	if sc.hap != nil {
		sc.hap.Poke(names...)
	}
	if sc.shelf != nil {
		sc.shelf.Poke(names...)
	}
}

// reached reports whether HAProxy would ask the agent now. A HAProxy that has no such backend, or does not check it, would.
func (sc *sidecar) reached(ctx context.Context) bool {
	servers, err := sc.hap.Rows(ctx, sc.set.AgentBackend)
	if errors.Is(err, dataplane.ErrNoRows) {
		return true
	}
	return err == nil && slices.ContainsFunc(servers, func(s dataplane.Row) bool { return s.State == "up" })
}

func (sc *sidecar) newIssuer(s settings.Settings) (*issuer.Issuer, error) {
	is, err := sc.issuerSettings(s)
	if err != nil {
		return nil, err
	}
	c := issuer.Config{Store: sc.store, Settings: is, UserAgent: "spoacme/" + buildVersion(), Logger: sc.log}
	sc.rescue(&c)
	return issuer.New(c)
}

// issuerSettings is the part of the settings that the issuer takes while it runs.
func (sc *sidecar) issuerSettings(s settings.Settings) (issuer.Settings, error) {
	is := issuer.Settings{Email: s.Email, NewAccount: sc.runner.newAccount}
	for _, dir := range s.CAs {
		is.CAs = append(is.CAs, issuer.CA{Directory: dir, EABKeyID: s.EAB.KeyID, EABKey: string(s.EAB.HMAC.Reveal())})
	}
	var err error
	is.HTTP, err = caClient(s.CARoots)
	return is, err
}

// caClient speaks to CAs whose HTTPS is signed by the roots in the file; nil, for the system's, when there is none.
func caClient(roots string) (*http.Client, error) {
	if roots == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(roots)
	if err != nil {
		return nil, fmt.Errorf("read SPOACME_CA_ROOTS: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read SPOACME_CA_ROOTS: %s holds no certificate in PEM", roots)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: tr}, nil
}

func (sc *sidecar) register() {
	sc.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, from := range []interface{ Metrics() []prometheus.Collector }{sc.agent, sc.issuer} {
		sc.metrics.MustRegister(from.Metrics()...)
	}
	if sc.hap != nil {
		sc.metrics.MustRegister(sc.hap.Metrics()...)
	}
	if sc.store.fleet != nil {
		sc.metrics.MustRegister(sc.store.fleet.Metrics()...)
	}
	sc.metrics.MustRegister(status.Metrics(sc.view)...)
}

// run returns nil when ctx ended, errAnew when it has to begin anew with sc.next. What answers (agent, status, control) ends
// after what works (issuer, swaps), so that an order that is given up still takes its tokens back.
func (sc *sidecar) run(ctx context.Context) error {
	defer func() {
		if err := sc.store.close(); err != nil {
			sc.log.Error("close the store", "err", err)
		}
	}()
	answering, stopAnswering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAnswering()
	front, frontCtx := errgroup.WithContext(answering)
	if err := sc.answer(frontCtx, front); err != nil {
		stopAnswering()
		return errors.Join(err, front.Wait())
	}
	work, workCtx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(frontCtx, func() { work.Go(func() error { return context.Cause(frontCtx) }) })
	sc.store.run(frontCtx, front)
	sc.work(workCtx, work)
	sc.log.Info("running", "version", buildVersion(), "node", sc.set.Node, "agent", sc.set.Agent, "store", sc.set.Store)
	err := work.Wait()
	stop()
	stopAnswering()
	return errors.Join(err, front.Wait())
}

// answer starts what others connect to.
func (sc *sidecar) answer(ctx context.Context, g *errgroup.Group) error {
	if sc.hap != nil {
		if err := sc.answerHAProxy(ctx, g); err != nil {
			return err
		}
	}
	if sc.set.HTTP != "" {
		ln, err := listen(sc.set.HTTP, "SPOACME_HTTP")
		if err != nil {
			return err
		}
		g.Go(func() error { return status.HTTP{View: sc.view, Gather: sc.metrics, Logger: sc.log}.Serve(ctx, ln) })
	}
	local, err := listenControl(sc.set.Control)
	if err != nil {
		return err
	}
	c := &control{store: sc.store, catalog: sc.catalog, removal: sc.removal, issuer: sc.issuer, fleet: sc.fleet, tokens: sc.tokens, view: sc.view, log: sc.log}
	g.Go(func() error { return c.Serve(ctx, local) })
	return nil
}

// answerHAProxy starts what HAProxy connects to.
func (sc *sidecar) answerHAProxy(ctx context.Context, g *errgroup.Group) error {
	ln, err := spoa.Listen(sc.set.Agent)
	if err != nil {
		return err
	}
	g.Go(func() error { return sc.agent.Serve(ctx, ln) })
	if sc.set.AgentCheck == "" {
		return nil
	}
	checks, err := listen(sc.set.AgentCheck, "SPOACME_AGENT_CHECK")
	if err != nil {
		return err
	}
	g.Go(func() error { return (&status.AgentCheck{View: sc.view}).Serve(ctx, checks) })
	return nil
}

// settle is how long a process of a fleet waits before it may lead: the others may be starting too, and a node
// that the leader does not know yet answers no challenge.
const settle = 3 * time.Second

// lead issues certificates whenever this process holds the lease, until ctx ends.
func (sc *sidecar) lead(ctx context.Context) error {
	if sc.fleet != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
	}
	return sc.issuer.Run(ctx)
}

// work starts what brings certificates to HAProxy.
func (sc *sidecar) work(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return sc.catalog.Run(ctx) })
	g.Go(func() error { return sc.watchSettings(ctx) })
	sc.keep(ctx, g)
	if sc.set.Role != roleEdge {
		g.Go(func() error { return sc.lead(ctx) })
	}
	if sc.fleet != nil {
		g.Go(func() error { return sc.fleet.Run(ctx) })
		g.Go(func() error { return sc.fleet.FollowForeign(ctx) })
	}
	if sc.hap == nil {
		return
	}
	g.Go(func() error { return sc.tokens.Run(ctx) })
	g.Go(func() error { return sc.hap.Run(ctx, source{sc.catalog, sc.store, sc.fleet}) })
	g.Go(func() error { return sc.removal.Run(ctx) })
	if sc.aside != nil {
		g.Go(func() error { return sc.aside.Run(ctx) })
	}
	if sc.set.AgentCheck != "" {
		g.Go(func() error { return sc.rows().Run(ctx) })
	}
}

// listen opens an address of a setting. A unix socket is for this user and group, and takes the place of one that a dead process
// left behind.
func listen(address, variable string) (net.Listener, error) {
	if network, _ := settings.Network(address); network == "unix" {
		ln, err := spoa.Listen(address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		return ln, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w: choose another address, or end what uses it", variable, err)
	}
	return ln, nil
}

// listenControl makes the socket of the command line, for this user and group only.
func listenControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the folder of SPOACME_CONTROL: %w: choose another path", err)
	}
	return spoa.Listen("unix@" + path)
}

// newProcess is called when a HAProxy process that was not seen before speaks to the agent.
func (sc *sidecar) newProcess() {
	sc.hap.Poke()
	wake(sc.engine)
	wake(sc.poked)
}

// wake leaves a token for whoever waits for it.
func wake(waiting chan struct{}) {
	select {
	case waiting <- struct{}{}:
	default:
	}
}

// rows keeps a statistics row per certificate.
func (sc *sidecar) rows() *status.Rows {
	return &status.Rows{HAProxy: rowsBackend{sc.hap}, Backend: sc.set.RowsBackend, View: sc.view, Agent: sc.set.AgentCheck,
		Probe: sc.set.Probe, Poke: sc.poked, Logger: sc.log}
}
