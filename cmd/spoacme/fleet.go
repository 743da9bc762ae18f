package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// fleet is this node's part in its fleet beside the records: it says what this node serves differently, knows how the
// others do, and knows the certificates that other tools put into the store.
type fleet struct {
	store   *consul.Store
	log     *slog.Logger
	node    string
	view    func() status.View
	changed func(names []string)

	mu      sync.Mutex
	nodes   []status.Node
	nodesAt time.Time
	foreign map[string]*store.Certificate
	since   map[string]time.Time // when a difference was first seen, by certificate
}

func newFleet(st *consul.Store, log *slog.Logger, node string, view func() status.View, changed func([]string)) *fleet {
	return &fleet{store: st, log: log, node: node, view: view, changed: changed, since: map[string]time.Time{}}
}

const (
	fleetEvery  = time.Second            // how often differences and health are looked at
	nodesEvery  = time.Minute            // how often the other nodes are, with nobody asking
	nodesFresh  = 200 * time.Millisecond // and with somebody asking
	nodesWithin = 3 * time.Second
)

// Run tells the fleet about this node until ctx ends.
func (f *fleet) Run(ctx context.Context) error {
	tick := time.NewTicker(fleetEvery)
	defer tick.Stop()
	for {
		v := f.view()
		if !v.Loading {
			f.store.PublishDrift(f.differences(v))
		}
		f.store.SetHealth(problem(v))
		f.refresh(ctx, nodesEvery)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func problem(v status.View) string {
	for _, c := range v.Conditions {
		if !c.OK {
			return c.Name + ": " + c.Message
		}
	}
	return ""
}

// differences lists what this node does not serve as it is stored, with the cause. What is on its way for a moment is none.
func (f *fleet) differences(v status.View) map[string]consul.Drift {
	f.mu.Lock()
	defer f.mu.Unlock()
	drift, since := map[string]consul.Drift{}, map[string]time.Time{}
	for _, c := range v.Certificates {
		if c.Stored == nil || c.Served != nil && c.Served.Fingerprint == c.Stored.Fingerprint {
			continue
		}
		first, known := f.since[c.Name]
		if !known {
			first = v.Time
		}
		since[c.Name] = first
		if v.Time.Sub(first) < 2*fleetEvery {
			continue
		}
		d := consul.Drift{Cause: c.Error, Since: first}
		switch {
		case !v.HAProxy.Reachable:
			d.Cause = "its HAProxy does not answer"
		case c.Served != nil:
			d.Fingerprint = c.Served.Fingerprint
		}
		if d.Cause == "" {
			d.Cause = "its HAProxy does not serve it"
		}
		drift[c.Name] = d
	}
	f.since = since
	return drift
}

// refresh reads how the nodes do when what is known is older than age.
func (f *fleet) refresh(ctx context.Context, age time.Duration) {
	f.mu.Lock()
	fresh := time.Since(f.nodesAt) < age
	if !fresh {
		f.nodesAt = time.Now() // one reader at a time, also when it fails
	}
	f.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, nodesWithin)
	defer cancel()
	nodes, err := f.store.Nodes(ctx)
	if err != nil {
		f.log.Debug("the fleet's nodes can't be read", "err", err)
		return
	}
	out := make([]status.Node, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, node(n))
	}
	f.mu.Lock()
	f.nodes = out
	f.mu.Unlock()
}

func node(n consul.Node) status.Node {
	out := status.Node{Name: n.Name, Role: string(n.Role), Live: n.Live, Leads: n.Leads, Suspect: n.Suspect, Behind: n.Behind}
	for name, d := range n.Drift {
		out.Differs = append(out.Differs, status.Difference{Certificate: name, Fingerprint: d.Fingerprint, Cause: d.Cause, Since: d.Since})
	}
	slices.SortFunc(out.Differs, func(a, b status.Difference) int { return compareNames(a.Certificate, b.Certificate) })
	return out
}

// known returns the nodes as last read.
func (f *fleet) known() []status.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.nodes)
}

// FollowForeign keeps the list of other tools' certificates until ctx ends. What could not be read is read again: nobody announces
// it a second time.
func (f *fleet) FollowForeign(ctx context.Context) error {
	return f.store.FollowForeign(ctx, func(names []string) {
		insist(ctx, f.log, "what other tools put into Consul", f.applyForeign, names)
	})
}

func (f *fleet) applyForeign(ctx context.Context, names []string) error {
	if names == nil {
		return f.listForeign(ctx)
	}
	var errs []error
	for _, name := range names {
		c, err := f.store.Foreign(ctx, name)
		f.mu.Lock()
		switch {
		case err == nil:
			if f.foreign == nil {
				f.foreign = map[string]*store.Certificate{}
			}
			f.foreign[name] = summary(c)
		case errors.Is(err, store.ErrAbsent):
			delete(f.foreign, name) // what is served stays
		case errors.Is(err, store.ErrUnreadable):
			f.log.Warn("a certificate of another tool can't be read", "err", err)
		default:
			errs = append(errs, err)
		}
		f.mu.Unlock()
	}
	f.changed(names)
	return errors.Join(errs...)
}

func (f *fleet) listForeign(ctx context.Context) error {
	found, unreadable, err := f.store.ListForeign(ctx)
	if err != nil {
		return err
	}
	for _, err := range unreadable {
		f.log.Warn("a certificate of another tool can't be read", "err", err)
	}
	all := map[string]*store.Certificate{}
	for _, c := range found {
		all[c.Name] = summary(c)
	}
	f.mu.Lock()
	f.foreign = all
	f.mu.Unlock()
	f.changed(nil)
	return nil
}

// summary is what the view needs of another tool's certificate.
func summary(c consul.Foreign) *store.Certificate {
	b := c.Bundle
	return &store.Certificate{Name: c.Name, Domains: b.Domains, Fingerprint: b.Fingerprint, Serial: b.Serial, Issuer: b.Issuer,
		NotBefore: b.NotBefore, NotAfter: b.NotAfter}
}

// foreignCertificates returns them by name.
func (f *fleet) foreignCertificates() []*store.Certificate {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*store.Certificate
	for _, c := range f.foreign {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *store.Certificate) int { return compareNames(a.Name, b.Name) })
	return out
}
