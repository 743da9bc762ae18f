package dataplane

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// mapSource is a store in memory.
type mapSource map[string]*store.Bundle

func (m mapSource) List(context.Context) ([]Want, error) {
	var out []Want
	for name, b := range m {
		out = append(out, Want{name, b.Fingerprint})
	}
	slices.SortFunc(out, func(a, b Want) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (m mapSource) Load(_ context.Context, name string) (*store.Bundle, error) {
	if b := m[name]; b != nil {
		return b, nil
	}
	return nil, store.ErrAbsent
}

// BenchmarkSwap measures one unit, from looking for transactions to the fingerprint read back.
func BenchmarkSwap(b *testing.B) {
	for _, v := range versions {
		b.Run(v, func(b *testing.B) {
			s, c := withList(b, v)
			s.start()
			h := s.open()
			file := filepath.Join(s.crtDir, "shop.pem")
			two := []*store.Bundle{c.issue(b, leaf{names: []string{"shop.example"}}), c.issue(b, leaf{names: []string{"shop.example"}})}
			if _, err := h.Deploy(b.Context(), Unit{Name: "shop", Bundle: two[0]}); err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			rss := s.rss()
			for i := 0; b.Loop(); i++ {
				begun := time.Now()
				if _, err := h.swap(b.Context(), file, two[(i+1)%2]); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			b.ReportMetric(s.rss()-rss, "haproxy-MB-more")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// rss is the memory of the worker in MB.
func (s *site) rss() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid()))
	var size, resident int
	_, _ = fmt.Sscan(string(text), &size, &resident)
	return float64(resident*os.Getpagesize()) / 1e6
}

// issueMany makes n certificates, an hour old.
func issueMany(t testing.TB, c *ca, n int) mapSource {
	t.Helper()
	src := mapSource{}
	for i := range n {
		name := fmt.Sprintf("c%05d", i)
		src[name] = c.issue(t, leaf{names: []string{name + ".example"}, age: time.Hour})
	}
	return src
}

// fill puts certificates on disk and into the crt-list.
func (s *site) fill(src mapSource) {
	s.t.Helper()
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(src)) {
		file := filepath.Join(s.crtDir, name+".pem")
		if err := os.WriteFile(file, src[name].PEM(), 0o600); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintln(&list, file)
	}
	s.write("crt/crt-list", []byte(list.String()))
}

// BenchmarkReconcile10000 measures the comparison of 10,000 certificates that HAProxy already has: the first one,
// which reads every file, and a later one.
func BenchmarkReconcile10000(b *testing.B) {
	src := issueMany(b, newCA(b), 10000)
	for _, v := range versions {
		b.Run(v, func(b *testing.B) {
			s, _ := withList(b, v)
			s.fill(src)
			s.start()
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for b.Loop() {
				h := s.open()
				begun := time.Now()
				if err := h.everything(b.Context(), src); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(begun).Seconds(), "first-s")
				begun = time.Now()
				if err := h.everything(b.Context(), src); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(begun).Seconds(), "next-s")
				for _, st := range h.Report().Certificates {
					if !st.Good() {
						b.Fatalf("%+v", st)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
				begun = time.Now()
				for i := range 50 {
					if _, err := h.swap(b.Context(), filepath.Join(s.crtDir, "c05000.pem"), src[fmt.Sprintf("c%05d", i%2)]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(time.Since(begun).Seconds()*1000/50, "swap-ms")
			}
		})
	}
}
