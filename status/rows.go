package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Row is a server of HAProxy that stands for a certificate.
type Row struct {
	Name  string
	Agent string // HOST:PORT of the agent check
	Send  string // what the agent check sends
	Probe string // HOST:PORT of the TLS check; empty: none
	SNI   string // name in the TLS check
	// How the row looks until its first agent check.
	Words  string // "ready up", "up drain" or "down"
	Weight int    // per cent of 100
}

// Present is a row that HAProxy has.
type Present struct {
	Name   string
	Agent  string // HOST:PORT of its agent check; empty: none
	Probed bool   // it has a TLS check
}

// Backend changes the servers of one backend of HAProxy at run time (2.6 or newer).
type Backend interface {
	Rows(ctx context.Context, backend string) ([]Present, error)
	// AddRow adds a server; it must not show a better state than the row's until its first agent check.
	AddRow(ctx context.Context, backend string, row Row) error
	// DelRow removes one; that it is gone already is no error.
	DelRow(ctx context.Context, backend, name string) error
}

// Rows keeps one row per certificate in HAProxy's statistics. It only adds and removes rows: their
// state comes from the agent check.
type Rows struct {
	HAProxy Backend
	Backend string      // name of the backend
	View    func() View // the current view
	Agent   string      // HOST:PORT where AgentCheck is served
	Probe   string      // HOST:PORT of HAProxy's own TLS address; may be empty
	// Poke makes it look at once: send to it when a new HAProxy process appears. May be nil.
	Poke   <-chan struct{}
	Every  time.Duration // how often it looks; 5 s when zero
	Logger *slog.Logger  // may be nil

	said string // what was logged last, so that it is logged once
}

// Run keeps the rows until ctx ends. What HAProxy refuses is logged once and tried again.
func (r *Rows) Run(ctx context.Context) error {
	every := cmp.Or(r.Every, 5*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		r.say(r.once(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.Poke:
			tick.Reset(every)
		}
	}
}

func (r *Rows) say(err error) {
	if r.Logger == nil || errors.Is(err, context.Canceled) {
		return
	}
	text := ""
	if err != nil {
		text = clean(err.Error(), maxError)
	}
	if text != r.said && text != "" {
		r.Logger.Warn("the statistics page does not show all certificates", "err", text)
	}
	r.said = text
}

// once brings the backend to what the view says.
func (r *Rows) once(ctx context.Context) error {
	v := r.View()
	if v.Loading || !v.HAProxy.Reachable {
		return nil // said elsewhere
	}
	present, err := r.HAProxy.Rows(ctx, r.Backend)
	if err != nil {
		return fmt.Errorf("list rows of backend %s: %w", r.Backend, err)
	}
	wanted := r.wanted(v)
	good := make(map[string]bool, len(present))
	var errs []error
	names := make(map[string]bool, len(wanted))
	probed := make(map[string]bool)
	for _, w := range wanted {
		names[w.Name], probed[w.Name] = true, w.Probe != ""
	}
	for _, p := range present {
		switch {
		case names[p.Name] && p.Agent == r.Agent && p.Probed == probed[p.Name]:
			good[p.Name] = true
		case r.ours(p, v):
			errs = append(errs, r.del(ctx, p.Name))
		case names[p.Name]:
			good[p.Name] = true // a server of the site: never ours to replace
			errs = append(errs, fmt.Errorf("backend %s has a server %s of its own: rename it", r.Backend, p.Name))
		}
	}
	for _, w := range wanted {
		if good[w.Name] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.HAProxy.AddRow(ctx, r.Backend, w); err != nil {
			// What stops one stops all: HAProxy is gone, too old, or has no such backend.
			return errors.Join(append(errs, fmt.Errorf("add row %s to backend %s: %w", w.Name, r.Backend, err))...)
		}
	}
	return errors.Join(errs...)
}

func (r *Rows) del(ctx context.Context, name string) error {
	if err := r.HAProxy.DelRow(ctx, r.Backend, name); err != nil {
		return fmt.Errorf("remove row %s from backend %s: %w", name, r.Backend, err)
	}
	return nil
}

// ours reports whether a row was added by a sidecar: no other server asks our agent check, nor has
// one under a certificate's name.
func (r *Rows) ours(p Present, v View) bool {
	if p.Agent == "" {
		return false
	}
	_, named := v.Certificate(p.Name)
	return p.Agent == r.Agent || named || p.Name == OthersRow
}

// wanted lists the rows that should be there, those that need attention first.
func (r *Rows) wanted(v View) []Row {
	shown, rest := layout(v)
	rows := make([]Row, 0, len(shown)+1)
	for _, c := range shown {
		row := r.row(c.Name, rowOf(c, v.Time))
		if r.Probe != "" && len(c.Domains) > 0 && c.Stored != nil {
			row.Probe, row.SNI = r.Probe, strings.Replace(c.Domains[0], "*", "any", 1)
		}
		rows = append(rows, row)
	}
	if len(rest) > 0 {
		rows = append(rows, r.row(OthersRow, restOf(rest, v.Time)))
	}
	return rows
}

func (r *Rows) row(name string, a answer) Row {
	return Row{Name: name, Agent: r.Agent, Send: name + "|", Words: a.words, Weight: a.weight}
}
