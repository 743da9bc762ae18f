package spoa

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	errLength   = errors.New("frame length is out of bounds")
	errSlow     = errors.New("frame stopped halfway")
	errSequence = errors.New("frame is out of sequence: one HELLO comes first")
	errIdle     = errors.New("connection is idle")
	errUnfit    = errors.New("health check failed on purpose")
)

// refusals are the reasons why a frame is refused, in the order of
// counters.refused.
var refusals = [...]struct {
	err    error
	reason string
}{
	{errLength, "length"},
	{errType, "type"},
	{errFragment, "fragment"},
	{errMalformed, "malformed"},
	{errSequence, "sequence"},
	{errSlow, "slow"},
}

// counters count since the agent was made.
type counters struct {
	open       atomic.Int64
	accepted   atomic.Uint64
	turnedAway atomic.Uint64
	checks     atomic.Uint64
	known      atomic.Uint64
	unknown    atomic.Uint64
	panics     atomic.Uint64
	refused    [len(refusals)]atomic.Uint64
}

// Stats are an agent's figures. All but Connections and Tokens count from
// when the agent was made.
type Stats struct {
	Connections  int    // open now
	Accepted     uint64 // connections accepted
	TurnedAway   uint64 // connections closed at once because of MaxConns
	HealthChecks uint64 // by HAProxy's option spop-check
	Tokens       int    // in the table now
	Answered     uint64 // questions for a token that is known
	Unknown      uint64 // all other questions
	StoreReads   uint64 // calls of Miss
	Refused      uint64 // frames refused; each ended its connection
	Panics       uint64 // panics contained; each is a bug worth reporting
}

// Stats returns the present figures.
func (a *Agent) Stats() Stats {
	s := Stats{
		Connections:  int(a.open.Load()),
		Accepted:     a.accepted.Load(),
		TurnedAway:   a.turnedAway.Load(),
		HealthChecks: a.checks.Load(),
		Tokens:       a.cfg.Table.Len(),
		Answered:     a.known.Load(),
		Unknown:      a.unknown.Load(),
		Panics:       a.panics.Load(),
	}
	if a.misses != nil {
		s.StoreReads = a.misses.reads.Load()
	}
	for i := range a.refused {
		s.Refused += a.refused[i].Load()
	}
	return s
}

// Metrics returns the agent's metrics for registration, once per agent.
func (a *Agent) Metrics() []prometheus.Collector {
	ms := []prometheus.Collector{
		gauge("connections", "Connections of HAProxy that are open.", func() float64 { return float64(a.open.Load()) }),
		gauge("tokens", "Tokens in the table.", func() float64 { return float64(a.cfg.Table.Len()) }),
		gauge("generation", "Highest generation of tokens in the table.", func() float64 { return float64(a.cfg.Table.Generation()) }),
		counter("connections_total", "Connections accepted.", nil, &a.accepted),
		counter("connections_turned_away_total", "Connections closed because too many were open.", nil, &a.turnedAway),
		counter("health_checks_total", "Health checks by HAProxy answered.", nil, &a.checks),
		counter("answers_total", "Questions of HAProxy answered.", prometheus.Labels{"result": "known"}, &a.known),
		counter("answers_total", "Questions of HAProxy answered.", prometheus.Labels{"result": "unknown"}, &a.unknown),
		counter("panics_total", "Panics contained; each is a bug.", nil, &a.panics),
	}
	for i, r := range refusals {
		ms = append(ms, counter("refused_frames_total", "Frames refused; each ended its connection.", prometheus.Labels{"reason": r.reason}, &a.refused[i]))
	}
	if m := a.misses; m != nil {
		ms = append(ms,
			counter("store_reads_total", "Reads of the store for tokens that were not in the table.", nil, &m.reads),
			counter("store_reads_found_total", "Such reads that found the token.", nil, &m.found),
			counter("store_reads_skipped_total", "Such reads not made because too many were under way.", nil, &m.skipped))
	}
	return ms
}

func gauge(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "spoacme", Subsystem: "spoa", Name: name, Help: help}, value)
}

func counter(name, help string, labels prometheus.Labels, n *atomic.Uint64) prometheus.Collector {
	opts := prometheus.CounterOpts{Namespace: "spoacme", Subsystem: "spoa", Name: name, Help: help, ConstLabels: labels}
	return prometheus.NewCounterFunc(opts, func() float64 { return float64(n.Load()) })
}
