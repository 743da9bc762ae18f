package dataplane

import (
	"context"
	"fmt"
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
			for i := 0; b.Loop(); i++ {
				begun := time.Now()
				if _, err := h.swap(b.Context(), file, two[(i+1)%2]); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// fill prepares n certificates on disk and in the crt-list, all with one key to save time.
func (s *site) fill(c *ca, n int) mapSource {
	s.t.Helper()
	src := mapSource{}
	var list strings.Builder
	for i := range n {
		name := fmt.Sprintf("c%05d", i)
		b := c.issue(s.t, leaf{names: []string{name + ".example"}, age: time.Hour})
		src[name] = b
		file := filepath.Join(s.crtDir, name+".pem")
		if err := os.WriteFile(file, b.PEM(), 0o600); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintln(&list, file)
	}
	s.write("crt/crt-list", []byte(list.String()))
	return src
}

// BenchmarkReconcile10000 measures the comparison of 10,000 certificates that HAProxy already has: the first one,
// which reads every file, and a later one.
func BenchmarkReconcile10000(b *testing.B) {
	for _, v := range versions {
		b.Run(v, func(b *testing.B) {
			s, c := withList(b, v)
			src := s.fill(c, 10000)
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
			}
		})
	}
}
