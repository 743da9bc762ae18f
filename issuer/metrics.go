package issuer

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	leading  prometheus.Gauge
	inFlight prometheus.Gauge
	orders   *prometheus.CounterVec
	seconds  prometheus.Histogram
	requests *prometheus.HistogramVec
	next     *prometheus.GaugeVec
	missing  prometheus.Counter
	regained prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spoacme_issuer_leading", Help: "1 while this process decides and orders."}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "spoacme_issuer_orders_in_flight", Help: "Orders that are being worked on."}),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spoacme_issuer_orders_total", Help: "Orders that ended, by CA and result (issued, or why not)."},
			[]string{"ca", "result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "spoacme_issuer_order_seconds", Help: "From the decision to the stored certificate.",
			Buckets: []float64{.25, .5, 1, 2, 5, 10, 30, 60, 300}}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "spoacme_issuer_ca_request_seconds", Help: "Requests to a CA, by CA and HTTP status (0: no answer).",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2, 5, 10, 30}},
			[]string{"ca", "status"}),
		next: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "spoacme_issuer_next_attempt_timestamp_seconds", Help: "Of certificates that failed: when they are tried again."},
			[]string{"certificate"}),
		missing: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spoacme_issuer_barrier_missed_total", Help: "Publications of tokens that some node had not confirmed in time."}),
		regained: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "spoacme_issuer_regained_total", Help: "Certificates that the store had lost and that were taken back."}),
	}
}

// Metrics returns the collectors for the program to register.
func (i *Issuer) Metrics() []prometheus.Collector {
	m := i.metrics
	return []prometheus.Collector{m.leading, m.inFlight, m.orders, m.seconds, m.requests, m.next, m.missing, m.regained}
}
