package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Source is what HAProxy should serve. Its methods are called from several goroutines.
type Source interface {
	// List returns every certificate, cheaply. A name that is not in it is left as it is: what disappears from a
	// store is not thereby deleted (see Remove).
	List(ctx context.Context) ([]Want, error)
	// Load returns one certificate; store.ErrAbsent when there is none, which is no reason to touch HAProxy.
	Load(ctx context.Context, name string) (*store.Bundle, error)
}

// Want is a certificate's name and the fingerprint of its leaf (SHA-1, upper-case hex).
type Want struct {
	Name, Fingerprint string
}

// chunk is how many certificates are looked at in one go: between two, what is urgent gets its turn.
const chunk = 64

// Run makes HAProxy serve what the source has, until ctx ends: on start, when HAProxy is a new process, when
// Poke says so, again after failures, and every minute. It returns an error only when another spoacme has the
// certificate directory.
func (h *HAProxy) Run(ctx context.Context, src Source) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-t.C:
		}
		err := h.turn(ctx, src)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrLocked):
			return err
		}
		h.setErr(err)
		t.Reset(h.nextTurn())
	}
}

// turn does everything that is due.
func (h *HAProxy) turn(ctx context.Context, src Source) error {
	down := h.watch(ctx)
	if err := h.urgent(ctx, src); err != nil {
		return err
	}
	h.mu.Lock()
	all := h.all || !time.Now().Before(h.nextAll)
	h.mu.Unlock()
	if all {
		if err := h.everything(ctx, src); err != nil {
			return err
		}
	}
	h.confirm(down)
	return down
}

// watch asks HAProxy who it is; a new process is a reason to compare everything.
func (h *HAProxy) watch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(h.timing.command, 2*time.Second))
	defer cancel()
	p, err := h.Process(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.metrics.up.Set(0)
		h.away = true
		return err
	}
	h.metrics.up.Set(1)
	h.all, h.away = h.all || h.away, false
	if p.same(h.proc) {
		return nil
	}
	h.metrics.processes.Inc()
	if h.proc.PID != 0 {
		h.log.Info("HAProxy is a new process; everything is compared", "pid", p.PID, "version", p.Version)
	}
	h.proc, h.all, h.place = p, true, Place{}
	for name := range h.swaps { // the likeliest to be old in it
		h.poked[name] = true
	}
	return nil
}

// urgent applies the certificates that somebody asked for or whose next try is due.
func (h *HAProxy) urgent(ctx context.Context, src Source) error {
	now := time.Now()
	h.mu.Lock()
	names := h.poked
	h.poked = map[string]bool{}
	for name, s := range h.states {
		if !s.retry.IsZero() && !s.retry.After(now) {
			names[name] = true
		}
	}
	h.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	for some := range slices.Chunk(slices.Sorted(maps.Keys(names)), chunk) {
		err := h.applyNames(ctx, src, some)
		switch {
		case errors.As(err, new(*unasked)): // watch sees when it is back, and then everything is compared
		case err != nil:
			h.again(some)
			return err
		}
	}
	return nil
}

// again keeps names for the next turn.
func (h *HAProxy) again(names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		h.poked[n] = true
	}
}

// applyNames loads certificates whatever HAProxy has, for their fingerprints are not known.
func (h *HAProxy) applyNames(ctx context.Context, src Source, names []string) error {
	var jobs []*job
	for _, name := range names {
		b, err := src.Load(ctx, name)
		if errors.Is(err, store.ErrAbsent) {
			h.forgetState(name)
			continue
		}
		j := &job{name: name, b: b}
		if err != nil {
			j.err = fmt.Errorf("load certificate: %w", err)
			h.record(j)
			continue
		}
		j.want = b.Fingerprint
		jobs = append(jobs, j)
	}
	if len(jobs) == 0 {
		return nil
	}
	return h.applyAll(ctx, jobs)
}

func (h *HAProxy) forgetState(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.states, name)
	delete(h.swaps, name)
}

// everything compares HAProxy with the source, and says when to do it again.
func (h *HAProxy) everything(ctx context.Context, src Source) error {
	h.mu.Lock()
	h.all = false
	h.mu.Unlock()
	err := h.compare(ctx, src)
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextAll = now.Add(h.timing.full)
	if err != nil {
		h.metrics.reconciles.WithLabelValues("failed").Inc()
		if !errors.Is(err, ErrDown) { // that it is back is seen by watch
			h.nextAll = now.Add(min(h.timing.retry<<min(h.failures, 16), h.timing.full))
			h.failures++
		}
		return err
	}
	h.metrics.reconciles.WithLabelValues("done").Inc()
	h.metrics.last.SetToCurrentTime()
	h.comparedAt, h.failures = now, 0
	return nil
}

func (h *HAProxy) compare(ctx context.Context, src Source) error {
	if err := h.applyAll(ctx, nil); err != nil { // where certificates go, locked, also when there are none
		return err
	}
	wants, err := src.List(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errSource, err)
	}
	h.setWanted(wants)
	var down error
	for some := range slices.Chunk(wants, chunk) {
		jobs := make([]*job, 0, len(some))
		for _, w := range some {
			if err := store.ValidName(w.Name); err != nil {
				h.log.Error("certificate is not deployed", "certificate", w.Name, "err", err)
				continue
			}
			jobs = append(jobs, &job{name: w.Name, want: w.Fingerprint, load: func(ctx context.Context) (*store.Bundle, error) {
				return src.Load(ctx, w.Name)
			}})
		}
		if err := h.applyAll(ctx, jobs); errors.As(err, new(*unasked)) {
			down = err
		} else if err != nil {
			return err
		}
		for _, j := range jobs {
			if j.swapped {
				h.metrics.repairs.Inc()
			}
		}
		if err := h.urgent(ctx, src); err != nil {
			return err
		}
	}
	h.count(wants)
	h.buryDead(ctx)
	return down
}

func (h *HAProxy) buryDead(ctx context.Context) {
	if h.take(ctx) != nil {
		return
	}
	defer h.release()
	if p, err := h.settle(ctx); err == nil && !p.Directory() {
		h.bury(p)
	}
}

// setWanted keeps the fingerprints that are ours; a transaction that holds one is ours, too.
func (h *HAProxy) setWanted(wants []Want) {
	m := make(map[string]bool, len(wants))
	for _, w := range wants {
		if w.Fingerprint != "" {
			m[w.Fingerprint] = true
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = m
}

// count drops the states of what is no longer wanted and counts the others.
func (h *HAProxy) count(wants []Want) {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make(map[string]bool, len(wants))
	for _, w := range wants {
		names[w.Name] = true
	}
	drift := 0
	for name, s := range h.states {
		if !names[name] && !h.poked[name] {
			delete(h.states, name)
			delete(h.swaps, name)
			continue
		}
		if !s.Good() {
			drift++
		}
	}
	h.metrics.drift.Set(float64(drift))
	h.metrics.managed.Set(float64(len(wants)))
}

// confirm marks swaps that the same process has kept long enough.
func (h *HAProxy) confirm(down error) {
	if down != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, at := range h.swaps {
		if s := h.states[name]; s == nil {
			delete(h.swaps, name)
		} else if time.Since(at) >= h.timing.confirm {
			s.Confirmed = s.Err == nil
			delete(h.swaps, name)
		}
	}
}

// passes is how long what mostly passes by itself may last before it is called an error: a store that was not read yet at a
// start, certificates that somebody else has locked in HAProxy.
const passes = 10 * time.Second

// trouble is why HAProxy as a whole can't be kept up to date.
type trouble struct {
	since time.Time // zero while it can
	said  string    // the cause that was logged last
}

// setErr keeps the state of HAProxy as a whole, and logs each cause once. A HAProxy that is gone gives one error after the
// other, by what was asked of it and by how far it has come in starting: that is one cause.
func (h *HAProxy) setErr(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	now := time.Now()
	t := &h.trouble
	if err == nil {
		if t.said != "" {
			h.log.Info("HAProxy is kept up to date again", "after", now.Sub(t.since).Round(100*time.Millisecond).String())
		}
		*t = trouble{}
		return
	}
	if t.since.IsZero() {
		t.since = now
	}
	cause := err.Error()
	switch {
	case errors.Is(err, ErrDown):
		cause = ErrDown.Error()
	case errors.Is(err, errSource):
		if cause = errSource.Error(); now.Sub(t.since) < passes {
			return
		}
	}
	if cause != t.said {
		t.said = cause
		h.log.Error("HAProxy can't be kept up to date", "err", err)
	}
}

// nextTurn returns how long nothing is due.
func (h *HAProxy) nextTurn() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	wait := h.timing.poll
	if len(h.swaps) > 0 {
		wait = h.timing.quick
	}
	now := time.Now()
	for _, s := range h.states {
		if !s.retry.IsZero() {
			wait = min(wait, s.retry.Sub(now))
		}
	}
	return max(wait, 10*time.Millisecond)
}
