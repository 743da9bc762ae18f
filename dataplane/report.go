package dataplane

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// State is what is known of one certificate.
type State struct {
	Name   string
	File   string
	Wanted string // fingerprint that the store has
	Served        // what HAProxy had when it was last asked
	// Since is when it came to be served so.
	Since time.Time
	// Confirmed is set when the process that took the certificate was still the same some seconds later. A worker
	// that was starting at the time of the swap has read the files before it.
	Confirmed bool
	// Err says why HAProxy does not serve what is wanted and what to do, DiskErr why it may not after a restart.
	Err, DiskErr error

	failures int
	retry    time.Time
	hindered time.Time // since when only something that passes is in the way; zero when nothing is
	shouted  bool      // that it does not pass was logged
}

// Good reports whether HAProxy serves what is wanted, now and after a restart.
func (s *State) Good() bool {
	return s.Err == nil && s.DiskErr == nil && s.Fingerprint == s.Wanted && s.Status == "Used"
}

// Report is what is known of HAProxy and the certificates.
type Report struct {
	Place        Place
	Process      Process   // the last one that answered
	Err          error     // why HAProxy, its crt-list or the source could not be read
	Compared     time.Time // when everything was last compared
	Certificates []State   // by name
}

// Report returns the last known state, without asking anybody.
func (h *HAProxy) Report() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := Report{Place: h.place, Process: h.proc, Err: h.err, Compared: h.comparedAt}
	r.Certificates = make([]State, 0, len(h.states))
	for _, s := range h.states {
		r.Certificates = append(r.Certificates, *s)
	}
	slices.SortFunc(r.Certificates, func(a, b State) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// record keeps what became of a job.
func (h *HAProxy) record(j *job) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.states[j.name]
	if s == nil {
		s = &State{Name: j.name}
		h.states[j.name] = s
	}
	if s.Fingerprint != j.after.Fingerprint || s.Status != j.after.Status || s.Since.IsZero() {
		s.Since = now
	}
	s.File, s.Wanted = j.file, j.want
	if !j.common {
		s.Served = j.after
	}
	h.complain(j, s)
	s.Err, s.DiskErr = j.err, j.disk
	switch {
	case j.swapped:
		h.swaps[j.name] = now
		s.Confirmed = false
		if j.before.Status != "" && j.before.Fingerprint != j.want {
			h.log.Info("certificate swapped into HAProxy", "certificate", j.name, "serial", j.after.Serial)
		} else {
			h.log.Info("certificate added to HAProxy", "certificate", j.name, "serial", j.after.Serial)
		}
	case j.err == nil && h.swaps[j.name].IsZero():
		s.Confirmed = true
	}
	s.schedule(now, h.timing, j.common)
}

// complain logs an error once, not at every try.
func (h *HAProxy) complain(j *job, s *State) {
	if j.common && j.disk == nil {
		return
	}
	passing := h.passing(j, s)
	for _, e := range []struct{ now, before error }{{j.err, s.Err}, {j.disk, s.DiskErr}} {
		switch {
		case e.now == j.err && passing:
		case e.now == nil || e.before != nil && e.now.Error() == e.before.Error():
		case errors.Is(e.now, ErrBusy) && errors.Is(e.before, ErrBusy), j.common && e.now == j.err:
		default:
			h.log.Error("certificate is not deployed", "certificate", j.name, "err", e.now)
		}
	}
}

// passing reports whether what is in the way mostly passes by itself, and logs that it is there, and that it does not pass.
func (h *HAProxy) passing(j *job, s *State) bool {
	if !transient(j.err) {
		s.hindered, s.shouted = time.Time{}, false
		return false
	}
	now := time.Now()
	switch {
	case s.hindered.IsZero():
		s.hindered = now
		h.log.Warn("certificate is not deployed yet, trying again", "certificate", j.name, "err", j.err)
	case !s.shouted && now.Sub(s.hindered) >= passes:
		s.shouted = true
		h.log.Error("certificate is not deployed", "certificate", j.name, "err", j.err, "for", now.Sub(s.hindered).Round(time.Second).String())
	}
	return true
}

// schedule sets when a failed certificate is tried again.
func (s *State) schedule(now time.Time, t timing, common bool) {
	if s.DiskErr == nil && (s.Err == nil || common) { // what is common is tried again with everything
		s.failures, s.retry = 0, time.Time{}
		return
	}
	wait := t.full
	if s.failures < 16 {
		wait = min(t.retry<<s.failures, t.full)
	}
	if errors.Is(s.Err, ErrBusy) || transient(s.Err) {
		wait = t.retry
	} else {
		s.failures++
	}
	s.retry = now.Add(wait)
}
