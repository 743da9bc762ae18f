package status

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector turns the view into metrics at every scrape.
type collector struct {
	view                                     func() View
	notAfter, renewAt, served, failures      *prometheus.Desc
	states, condition, ready, drift, haproxy *prometheus.Desc
}

// Metrics returns the metrics of certificates and conditions, made from the view when they are asked for.
func Metrics(view func() View) []prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spoacme_"+name, help, labels, nil)
	}
	return []prometheus.Collector{&collector{
		view:      view,
		notAfter:  desc("certificate_not_after_seconds", "End of the stored certificate, in seconds since 1970.", "certificate"),
		renewAt:   desc("certificate_renew_at_seconds", "When the certificate is to be renewed, in seconds since 1970.", "certificate"),
		served:    desc("certificate_served", "1 when HAProxy serves the stored certificate.", "certificate"),
		failures:  desc("certificate_renewal_failures", "Tries in a row that failed.", "certificate"),
		states:    desc("certificates", "Certificates by state.", "state"),
		condition: desc("condition", "1 when the condition holds.", "condition"),
		ready:     desc("ready", "1 when every condition holds."),
		drift:     desc("fleet_drift_since_seconds", "Since when a node of the fleet does not serve the stored certificate, in seconds since 1970.", "certificate", "node"),
		haproxy:   desc("haproxy_reachable", "1 when HAProxy answers on its stats socket."),
	}}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.notAfter, c.renewAt, c.served, c.failures, c.states, c.condition, c.ready, c.drift, c.haproxy} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	v := c.view()
	n := make(map[State]int)
	for _, cert := range v.Certificates {
		n[cert.State]++
		if cert.Stored != nil {
			gauge(c.notAfter, float64(cert.Stored.NotAfter.Unix()), cert.Name)
		}
		if !cert.RenewAt.IsZero() {
			gauge(c.renewAt, float64(cert.RenewAt.Unix()), cert.Name)
		}
		gauge(c.served, number(cert.Stored != nil && cert.Served != nil && cert.Served.Fingerprint == cert.Stored.Fingerprint), cert.Name)
		gauge(c.failures, float64(cert.Failures), cert.Name)
	}
	for _, s := range States() {
		gauge(c.states, float64(n[s]), string(s))
	}
	seen := make(map[string]bool) // the same metric twice would cost the whole page
	for _, cond := range v.Conditions {
		if !seen[cond.Name] {
			seen[cond.Name] = true
			gauge(c.condition, number(cond.OK), cond.Name)
		}
	}
	for _, n := range v.Fleet {
		for _, d := range n.Differs {
			gauge(c.drift, float64(d.Since.Unix()), d.Certificate, n.Name)
		}
	}
	gauge(c.ready, number(v.Ready()))
	gauge(c.haproxy, number(v.HAProxy.Reachable))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
