package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
)

// view builds what the operator sees from the records and from what HAProxy was last seen to serve.
func (sc *sidecar) view() status.View {
	var report dataplane.Report
	if sc.hap != nil {
		report = sc.hap.Report()
	}
	loaded, unreadable := sc.catalog.state()
	in := status.Input{
		Now: time.Now(), Node: sc.set.Node, Version: buildVersion(), Loading: !loaded,
		HAProxy: status.HAProxy{
			Version: report.Process.Version, PID: report.Process.PID, Since: report.Process.Started,
			Reachable: report.Err == nil && report.Process.PID != 0,
		},
		Wanted:   all[*store.Wanted](sc.catalog),
		Issued:   all[*store.Certificate](sc.catalog),
		Orders:   all[*store.Order](sc.catalog),
		Attempts: all[*store.Attempt](sc.catalog),
		Foreign:  sc.fleet.foreignCertificates(),
		Served:   map[string]status.Served{},
	}
	if sc.fleet != nil {
		in.Role, in.Fleet = sc.set.Role, sc.fleet.known()
	}
	diskErrs := 0
	for _, c := range report.Certificates {
		in.Served[c.Name] = served(c)
		if c.DiskErr != nil {
			diskErrs++
		}
	}
	in.Conditions = sc.conditions(report, loaded, unreadable, diskErrs)
	return status.Build(in)
}

func served(c dataplane.State) status.Served {
	s := status.Served{Fingerprint: c.Fingerprint, Since: c.Since}
	if err := errors.Join(c.Err, c.DiskErr); err != nil {
		s.Error = err.Error()
	}
	return s
}

// conditions are what must hold for this node to do its work.
func (sc *sidecar) conditions(report dataplane.Report, loaded bool, unreadable []error, diskErrs int) []status.Condition {
	haproxy := status.Condition{Name: "haproxy", OK: report.Err == nil && report.Process.PID != 0}
	switch {
	case report.Err != nil:
		haproxy.Message = report.Err.Error()
	case !haproxy.OK:
		haproxy.Message = "it was not asked yet"
	}
	reach := sc.store.reachable()
	st := status.Condition{Name: "store", OK: loaded && reach == nil && len(unreadable) == 0}
	switch {
	case reach != nil:
		st.Message = "what is served stays, nothing is issued: " + reach.Error()
	case !loaded:
		st.Message = "it was not read yet"
	case len(unreadable) > 0:
		st.Message = fmt.Sprintf("%d records can't be read, the first: %v", len(unreadable), unreadable[0])
	}
	disk := status.Condition{Name: "disk", OK: diskErrs == 0}
	if !disk.OK {
		disk.Message = fmt.Sprintf("%d certificates are served but not on disk: a restart of HAProxy would lose them; see 'spoacme status'", diskErrs)
	}
	set := status.Condition{Name: "settings", OK: true}
	if problems := sc.runner.problems(); len(problems) > 0 {
		set.OK, set.Message = false, problems[0]
		if len(problems) > 1 {
			set.Message += fmt.Sprintf(" (and %d more; see 'spoacme check')", len(problems)-1)
		}
	}
	if sc.hap == nil {
		return []status.Condition{st, set}
	}
	return []status.Condition{haproxy, st, disk, set}
}

// source is what HAProxy should serve: everything that is issued.
type source struct {
	catalog *catalog
	store   store.Store
	fleet   *fleet // nil without a fleet
}

// firstRead is how long HAProxy's turn waits for the store at the start.
const firstRead = 2 * time.Second

func (s source) List(ctx context.Context) ([]dataplane.Want, error) {
	ctx, cancel := context.WithTimeout(ctx, firstRead)
	defer cancel()
	select {
	case <-s.catalog.read:
	case <-ctx.Done():
		return nil, errors.New("the store was not read yet")
	}
	var wants []dataplane.Want
	issued := all[*store.Certificate](s.catalog)
	for _, c := range append(issued, s.fleet.foreignCertificates()...) {
		if i, ours := slices.BinarySearchFunc(issued, c.Name, func(c *store.Certificate, name string) int { return compareNames(c.Name, name) }); !ours || issued[i] == c {
			wants = append(wants, dataplane.Want{Name: c.Name, Fingerprint: c.Fingerprint})
		}
	}
	return wants, nil
}

func (s source) Load(ctx context.Context, name string) (*store.Bundle, error) {
	e, err := s.store.Get(ctx, store.Key{Kind: store.KindIssued, Name: name})
	if errors.Is(err, store.ErrAbsent) && s.fleet != nil {
		foreign, err := s.fleet.store.Foreign(ctx, name)
		return foreign.Bundle, err
	}
	if err != nil {
		return nil, err
	}
	return e.Record.(*store.Certificate).Bundle()
}

// rowsBackend lets the statistics rows be kept in HAProxy.
type rowsBackend struct{ hap *dataplane.HAProxy }

const agentCheckEvery = 2 * time.Second

func (b rowsBackend) Rows(ctx context.Context, backend string) ([]status.Present, error) {
	rows, err := b.hap.Rows(ctx, backend)
	if err != nil {
		return nil, err
	}
	present := make([]status.Present, len(rows))
	for i, r := range rows {
		present[i] = status.Present{Name: r.Name, Agent: r.Agent, Probed: r.Probed}
	}
	return present, nil
}

func (b rowsBackend) AddRow(ctx context.Context, backend string, r status.Row) error {
	state := map[string]string{"ready up": "up", "up drain": "drain", "down": "down"}[r.Words]
	return b.hap.AddRow(ctx, backend, dataplane.Row{Name: r.Name, State: state, Weight: r.Weight},
		dataplane.RowChecks{Agent: r.Agent, Every: agentCheckEvery, Probe: r.Probe, SNI: r.SNI})
}

func (b rowsBackend) DelRow(ctx context.Context, backend, name string) error {
	return b.hap.DelRow(ctx, backend, name)
}
