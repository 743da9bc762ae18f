package consul

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one store.
type metrics struct {
	calls       *prometheus.CounterVec
	watchErrors prometheus.Counter
	leading     prometheus.Gauge
	commits     prometheus.Counter
	txns        prometheus.Counter
	unknown     prometheus.Counter
	received    prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "spoacme", Subsystem: "consul", Name: name, Help: help})
	}
	return &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "spoacme", Subsystem: "consul", Name: "calls_total", Help: "Calls to Consul by outcome.",
		}, []string{"outcome"}),
		watchErrors: counter("watch_errors_total", "Blocking queries that failed."),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "spoacme", Subsystem: "consul", Name: "leading", Help: "1 while this node leads the fleet.",
		}),
		commits:  counter("commits_total", "Commits that were written under the lease."),
		txns:     counter("transactions_total", "Transactions that they took."),
		unknown:  counter("unanswered_total", "Transactions that were not answered in time."),
		received: counter("received_bytes_total", "Bytes of Consul's answers, without their headers."),
	}
}

// Metrics returns what a process may register.
func (s *Store) Metrics() []prometheus.Collector {
	m := s.metrics
	return []prometheus.Collector{m.calls, m.watchErrors, m.leading, m.commits, m.txns, m.unknown, m.received}
}

func (m *metrics) called(err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.calls.WithLabelValues(outcome).Inc()
}
