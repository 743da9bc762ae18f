package bench

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/file"
	"github.com/spoacme/spoacme/store/storetest"
)

// many is the number of certificates that "many" means.
const many = 10_000

// certificates makes n certificates, an hour old.
func certificates(b testing.TB, ca *storetest.CA, n int) []*store.Certificate {
	b.Helper()
	var all []*store.Certificate
	for i := range n {
		name := fmt.Sprintf("c%05d", i)
		c := ca.Certificate(name, storetest.Leaf{Domains: []string{name + ".example.com"}})
		c.RenewAt = c.NotAfter.AddDate(0, 0, -30)
		all = append(all, c)
	}
	return all
}

// startLoaded starts a HAProxy that has loaded the certificates from disk.
func startLoaded(b testing.TB, version string, all []*store.Certificate) *fixture.HAProxy {
	b.Helper()
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: version, Settings: none()})
	bundles := map[string][]byte{}
	for _, c := range all {
		bundle, err := c.Bundle()
		if err != nil {
			b.Fatal(err)
		}
		bundles[c.Name] = bundle.PEM()
	}
	if err := enlist(h, bundles); err != nil {
		b.Fatal(err)
	}
	if err := h.Restart(); err != nil {
		b.Fatal(err)
	}
	return h
}

// BenchmarkSwap measures how long it takes to put one new certificate into a HAProxy that has 100 or 10,000 of them:
// by swapping it in, and by a reload.
func BenchmarkSwap(b *testing.B) {
	s := &sheet{title: "One new certificate into a running HAProxy"}
	ca := storetest.NewCA(b, "Bench")
	all := certificates(b, ca, many)
	const swaps = 100
	for _, version := range fixture.Versions() {
		for _, n := range []int{100, many} {
			what := fmt.Sprintf("HAProxy %s with %d certificates", version, n)
			during(b, func(b *scope) {
				h := startLoaded(b, version, all[:n])
				took, err := swapTimes(b, h, ca, all[n/2].Name, swaps)
				if err != nil {
					b.Fatalf("%s: %v", what, err)
				}
				f := s.figure(what, "swap", "ms", "< 5 ms")
				f.samples = took
				for range min(*rounds, 3) {
					begun := time.Now()
					if err := h.Reload(b.Context()); err != nil {
						b.Fatal(err)
					}
					s.figure(what, "reload", "ms", "").add(time.Since(begun).Seconds() * 1000)
				}
			})
		}
	}
	s.note("A swap is: no transaction open, set, the transaction read back, commit, the fingerprint read back, by one process. A reload is from the signal until the new process answers and the old one no longer listens.")
	s.print(b)
}

// swapTimes deploys new certificates under one name and returns how long each swap took, in milliseconds.
func swapTimes(b testing.TB, h *fixture.HAProxy, ca *storetest.CA, name string, n int) ([]float64, error) {
	hap, err := dataplane.Open(dataplane.Config{Socket: h.Socket(), StateDir: b.TempDir()})
	if err != nil {
		return nil, err
	}
	defer hap.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(hap.Metrics()...)
	var took []float64
	before := 0.0
	for range n {
		bundle := ca.Bundle(storetest.Leaf{Domains: []string{name + ".example.com"}})
		if _, err := hap.Deploy(b.Context(), dataplane.Unit{Name: name, Bundle: bundle}); err != nil {
			return nil, err
		}
		families, err := registry.Gather()
		if err != nil {
			return nil, err
		}
		for _, f := range families {
			if f.GetName() == "spoacme_haproxy_swap_seconds" {
				sum := f.GetMetric()[0].GetHistogram().GetSampleSum()
				took, before = append(took, (sum-before)*1000), sum
			}
		}
	}
	return took, nil
}

// BenchmarkMemory measures the sidecar beside a HAProxy that has all its certificates already: how long it takes until
// everything is compared, and how much memory it needs then, at most and later on.
func BenchmarkMemory(b *testing.B) {
	s := &sheet{title: "The sidecar beside a HAProxy that has everything"}
	ca := storetest.NewCA(b, "Bench")
	all := certificates(b, ca, many)
	for _, size := range []struct {
		n                int
		memory, duration string
	}{{10, "< 40 MB", ""}, {many, "< 120 MB", "< 10 s"}} {
		versions := []string{"3.2"}
		if size.n == many {
			versions = fixture.Versions()
		}
		for _, version := range versions {
			what := fmt.Sprintf("HAProxy %s with %d certificates", version, size.n)
			during(b, func(b *scope) {
				h := startLoaded(b, version, all[:size.n])
				fillStore(b, storeDir(h), all[:size.n])
				var sidecar *fixture.Sidecar
				for range *rounds {
					begun := time.Now()
					if sidecar == nil {
						sidecar = fixture.StartSidecar(b, fixture.SidecarOptions{HAProxy: h})
					} else if err := sidecar.Restart(); err != nil {
						b.Fatal(err)
					}
					if err := compared(b.Context(), sidecar, size.n); err != nil {
						b.Fatalf("%s: %v\n%s", what, err, sidecar.Log())
					}
					s.figure(what, "from start to all compared", "s", size.duration).add(time.Since(begun).Seconds())
					settle(b.Context(), 5*time.Second)
					now, peak := memory(sidecar.PID())
					s.figure(what, "memory (VmRSS)", "MB", size.memory).add(now)
					s.figure(what, "highest memory (VmHWM)", "MB", size.memory).add(peak)
				}
			})
		}
	}
	s.note("The sidecar's metrics are read four times a second until everything is compared, and its memory 5 s later.")
	s.print(b)
}

// settle lets a time pass in which nothing is measured.
func settle(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// fillStore makes the store of a sidecar that has issued the certificates.
func fillStore(b testing.TB, dir string, all []*store.Certificate) {
	b.Helper()
	st, err := file.Open(dir, file.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	lease, err := st.Lead(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer lease.Release()
	err = putAll(b.Context(), st, lease, all)
	if err == nil { // some moments later nothing of that is in the journal any more
		err = fixture.Await(b.Context(), time.Minute, func() error {
			if info, err := os.Stat(filepath.Join(dir, "journal")); err != nil || info.Size() > 0 {
				return fmt.Errorf("the journal is not empty: %w", err)
			}
			return nil
		})
	}
	if err != nil {
		b.Fatal(err)
	}
}

// putAll commits certificates together with what wants them.
func putAll(ctx context.Context, st store.Store, lease store.Lease, all []*store.Certificate) error {
	var ops []store.Op
	for i, c := range all {
		ops = append(ops, store.Put(c), store.Put(&store.Wanted{Name: c.Name, Spec: store.Spec{Domains: c.Domains}, Generation: c.Generation, IssuedByHand: true}))
		if len(ops) < store.MaxOperations-1 && i < len(all)-1 {
			continue
		}
		if err := st.Commit(ctx, lease, nil, ops); err != nil {
			return err
		}
		ops = nil
	}
	return nil
}

// compared waits until the sidecar has found n certificates in HAProxy as they are stored.
func compared(ctx context.Context, s *fixture.Sidecar, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := s.Get("/metrics")
		if err == nil && metric(text, "spoacme_haproxy_certificates") == float64(n) && metric(text, "spoacme_haproxy_drift_certificates") == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("certificates were not compared in time: %w", cmp.Or(err, ctx.Err()))
		}
	}
}

// metric reads a value out of a page in Prometheus' format, 0 if it is not there.
func metric(page, name string) float64 {
	for line := range strings.Lines(page) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return f
		}
	}
	return 0
}

var memoryLine = regexp.MustCompile(`(?m)^Vm(RSS|HWM):\s+(\d+) kB`)

// memory returns how much a process has in memory now and had at most, in MB of 1,000,000 bytes.
func memory(pid int) (now, peak float64) {
	status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	for _, m := range memoryLine.FindAllStringSubmatch(string(status), -1) {
		kB, _ := strconv.ParseFloat(m[2], 64)
		if m[1] == "RSS" {
			now = kB * 1024 / 1e6
		} else {
			peak = kB * 1024 / 1e6
		}
	}
	return now, peak
}
