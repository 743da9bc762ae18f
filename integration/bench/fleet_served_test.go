package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// changes is how many certificates are renewed for each figure, one after the other.
const changes = 40

// BenchmarkFleet measures from the start of the commit of a renewed certificate until every HAProxy serves it, and what
// that takes of Consul, in a fleet with few certificates.
func BenchmarkFleet(b *testing.B) { measureFleet(b, 100, 10) }

// BenchmarkLargeFleet is BenchmarkFleet with many certificates, and with as many HAProxies as can have them all in memory.
func BenchmarkLargeFleet(b *testing.B) { measureFleet(b, many, 3) }

func measureFleet(b *testing.B, size, haproxies int) {
	s := &sheet{title: fmt.Sprintf("A certificate written, and served by a fleet that has %d", size)}
	ca := storetest.NewCA(b, "Bench")
	all := certificates(b, ca, size)
	during(b, func(b *scope) {
		f := startFleet(b, 3, ca, all)
		for _, count := range []int{3, 10, 50} {
			f.grow(count, min(count, haproxies))
			f.renewals(s, count)
		}
		f.rest(s)
	})
	s.note("Three Consul servers, HAProxy 3.2 with one thread, a sidecar of its own beside each, all on this machine. Served: from the start of the commit until the sidecar has read the new fingerprint back from HAProxy, by the time in its log; a TLS handshake with each HAProxy proves the last one. A stand-in is a sidecar's store in the process that measures: it has session, acks, watches and token table, and fetches and checks the certificate; there is no HAProxy behind it.")
	s.print(b)
}

// renewals renews certificates one after the other.
func (f *fleet) renewals(s *sheet, count int) {
	f.b.Helper()
	what := fmt.Sprintf("%d nodes", count)
	target := map[int]string{3: "p99 < 150 ms", 50: "p99 < 500 ms"}[count]
	before := f.traffic()
	for i := range changes {
		name := f.all[(i*37)%len(f.all)].Name
		c := f.ca.Certificate(name, storetest.Leaf{Domains: []string{name + ".example.com"}})
		c.RenewAt = c.NotAfter.AddDate(0, 0, -30)
		begun := time.Now()
		if err := f.leader.Commit(context.Background(), f.lease, nil, []store.Op{store.Put(c)}); err != nil {
			f.b.Fatal(err)
		}
		took := f.servedAfter(c, begun)
		served := s.figure(what+": written to served", fmt.Sprintf("%d HAProxies", len(f.nodes)), "ms", target)
		served.samples = append(served.samples, took...)
		last := s.figure(what+": written to served", "the last HAProxy", "ms", "")
		last.samples = append(last.samples, slices.Max(took))
		if len(f.standins) > 0 {
			fetched := s.figure(what+": written to fetched", fmt.Sprintf("%d stand-ins", len(f.standins)), "ms", "")
			fetched.samples = append(fetched.samples, f.fetchedAfter(c, begun)...)
		}
		settle(context.Background(), 100*time.Millisecond)
	}
	after := f.traffic()
	for i := range f.nodes {
		s.figure(what+": received for one change", "sidecar", "kB", "< 20 kB").add((after[i].bytes - before[i].bytes) / changes / 1000)
	}
	f.prove()
}

// servedAfter waits until all HAProxies serve a certificate and returns how many milliseconds each took.
func (f *fleet) servedAfter(c *store.Certificate, begun time.Time) []float64 {
	f.b.Helper()
	var took []float64
	for i, n := range f.nodes {
		f.await(20*time.Second, fmt.Sprintf("node %d serves %s", i, c.Name), func() bool {
			at, ok := swapped(n.sidecar.Log(), c)
			if ok {
				took = append(took, ms(at.Sub(begun)))
			}
			return ok
		})
	}
	return took
}

func (f *fleet) fetchedAfter(c *store.Certificate, begun time.Time) []float64 {
	f.b.Helper()
	var took []float64
	for i, n := range f.standins {
		f.await(20*time.Second, fmt.Sprintf("stand-in %d has %s", i, c.Name), func() bool { return !n.when(c.Fingerprint).IsZero() })
		took = append(took, ms(n.when(c.Fingerprint).Sub(begun)))
	}
	return took
}

// swapped finds in a sidecar's log when it had read a new certificate back from HAProxy.
func swapped(log string, c *store.Certificate) (time.Time, bool) {
	at := strings.LastIndex(log, fmt.Sprintf(`msg="certificate swapped into HAProxy" certificate=%s serial=%s`+"\n", c.Name, c.Serial))
	if at < 0 {
		return time.Time{}, false
	}
	line := log[strings.LastIndexByte(log[:at], '\n')+1 : at]
	stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	t, err := time.Parse(time.RFC3339Nano, stamp)
	return t, err == nil
}

// prove makes a handshake with every HAProxy for what was renewed last.
func (f *fleet) prove() {
	f.b.Helper()
	name := f.all[((changes-1)*37)%len(f.all)].Name
	want := ""
	for i, n := range f.nodes {
		served, err := fixture.Fetch(context.Background(), n.haproxy.HTTPS.Addr(), name+".example.com")
		if err != nil {
			f.b.Fatal(err)
		}
		serial := served.Leaf().SerialNumber.Text(16)
		if want == "" {
			want = serial
		}
		if serial != want || !strings.Contains(n.sidecar.Log(), "serial="+serial) {
			f.b.Errorf("node %d serves %s, want %s", i, serial, want)
		}
	}
}

// traffic is what a sidecar has had of Consul since its start.
type traffic struct {
	node         int
	calls, bytes float64
}

func (f *fleet) traffic() []traffic {
	all := make([]traffic, len(f.nodes))
	for i, n := range f.nodes {
		page, err := n.sidecar.Get("/metrics")
		if err != nil {
			f.b.Fatal(err)
		}
		all[i] = traffic{i, metric(page, `spoacme_consul_calls_total{outcome="ok"}`), metric(page, "spoacme_consul_received_bytes_total")}
	}
	return all
}

// atRest is longer than a blocking query lasts.
const atRest = time.Minute

// rest measures what nodes ask of Consul while nothing happens, and what a restarted one reads.
func (f *fleet) rest(s *sheet) {
	f.b.Helper()
	what := fmt.Sprintf("%d nodes", len(f.nodes)+len(f.standins))
	before := f.traffic()
	settle(context.Background(), atRest)
	after := f.traffic()
	for i := range f.nodes {
		s.figure(what+": requests at rest", "sidecar", "/s", "< 1 /s").add((after[i].calls - before[i].calls) / atRest.Seconds())
	}
	n := f.nodes[0].sidecar
	if err := n.Restart(); err != nil {
		f.b.Fatal(err)
	}
	if err := compared(context.Background(), n, len(f.all)); err != nil {
		f.b.Fatal(err)
	}
	settle(context.Background(), 2*time.Second)
	s.figure(what+": received by a restarted sidecar", "sidecar", "MB", "").add(f.traffic()[0].bytes / 1e6)
}

// BenchmarkNewNode measures how long a node takes that has nothing on disk, in a fleet with many certificates.
func BenchmarkNewNode(b *testing.B) {
	s := &sheet{title: fmt.Sprintf("A new node in a fleet that has %d certificates", many)}
	ca := storetest.NewCA(b, "Bench")
	during(b, func(b *scope) { startFleet(b, 3, ca, certificates(b, ca, many)).cold(s) })
	s.print(b)
}

// cold adds a node that has nothing on disk.
func (f *fleet) cold(s *sheet) {
	f.b.Helper()
	begun := time.Now()
	n := f.startNode(len(f.nodes)+len(f.standins), nil)
	if err := compared(context.Background(), n.sidecar, len(f.all)); err != nil {
		f.b.Fatalf("a new node: %v\n%s", err, n.sidecar.Log())
	}
	s.figure("from start to all served", "sidecar", "s", "").add(time.Since(begun).Seconds())
	page, err := n.sidecar.Get("/metrics")
	if err != nil {
		f.b.Fatal(err)
	}
	s.figure("received until then", "sidecar", "MB", "").add(metric(page, "spoacme_consul_received_bytes_total") / 1e6)
	n.sidecar.Stop()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
