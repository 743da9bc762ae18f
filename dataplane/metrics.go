package dataplane

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	swaps      *prometheus.CounterVec
	seconds    prometheus.Histogram
	aborted    prometheus.Counter
	repairs    prometheus.Counter
	processes  prometheus.Counter
	reconciles *prometheus.CounterVec
	last       prometheus.Gauge
	drift      prometheus.Gauge
	managed    prometheus.Gauge
	up         prometheus.Gauge
}

func newMetrics() metrics {
	const ns, sub = "spoacme", "haproxy"
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: ns, Subsystem: sub, Name: name, Help: help}
	}
	return metrics{
		swaps: prometheus.NewCounterVec(prometheus.CounterOpts(opts("swaps_total", "Certificates swapped into HAProxy, by result: done, failed, busy, wrong (something else was read back).")), []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "swap_seconds",
			Help: "Time from looking for open transactions to the fingerprint read back.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30}}),
		aborted:    prometheus.NewCounter(prometheus.CounterOpts(opts("foreign_transactions_aborted_total", "Other tools' certificate transactions that were left open and aborted."))),
		repairs:    prometheus.NewCounter(prometheus.CounterOpts(opts("repairs_total", "Certificates that HAProxy did not serve as stored, put right."))),
		processes:  prometheus.NewCounter(prometheus.CounterOpts(opts("processes_total", "HAProxy processes seen."))),
		reconciles: prometheus.NewCounterVec(prometheus.CounterOpts(opts("reconciles_total", "Full comparisons of HAProxy with the store, by result: done, failed.")), []string{"result"}),
		last:       prometheus.NewGauge(prometheus.GaugeOpts(opts("last_reconcile_timestamp_seconds", "When HAProxy was last wholly compared with the store."))),
		drift:      prometheus.NewGauge(prometheus.GaugeOpts(opts("drift_certificates", "Certificates that HAProxy does not serve as stored."))),
		managed:    prometheus.NewGauge(prometheus.GaugeOpts(opts("certificates", "Certificates that HAProxy should serve."))),
		up:         prometheus.NewGauge(prometheus.GaugeOpts(opts("up", "Whether HAProxy answers on its stats socket."))),
	}
}

func (m *metrics) swapped(err error, took time.Duration) {
	switch {
	case err == nil:
		m.swaps.WithLabelValues("done").Inc()
		m.seconds.Observe(took.Seconds())
	case errors.Is(err, ErrBusy):
		m.swaps.WithLabelValues("busy").Inc()
	default:
		m.swaps.WithLabelValues("failed").Inc()
	}
}

// Metrics returns what to register.
func (h *HAProxy) Metrics() []prometheus.Collector {
	m := &h.metrics
	return []prometheus.Collector{m.swaps, m.seconds, m.aborted, m.repairs, m.processes, m.reconciles, m.last, m.drift, m.managed, m.up}
}
