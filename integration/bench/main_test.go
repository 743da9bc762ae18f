// Package bench measures what the README's figures say, each beside the alternatives in the same run:
//
//	go test -run '^$' -bench . -benchtime 1x ./integration/bench
//
// A benchmark takes its samples itself, in rounds in which the contenders take turns, and reports medians: as a Markdown
// table, and as lines that benchstat reads (with several runs: benchstat -col /by). Nothing fails for being slow.
package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

var rounds = flag.Int("rounds", 5, "samples of each figure; what takes very long has fewer, as its table says")

// TestMain is also the Go server that requests are proxied to.
func TestMain(m *testing.M) {
	if address := os.Getenv(originVariable); address != "" {
		if err := origin(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// series is the samples of one figure of one contender.
type series struct {
	what, by string
	unit     string // "s", "ms", "req/s", "MB", …
	target   string // in words; empty for an alternative
	samples  []float64
}

// add takes one more sample, and says so: a run takes minutes.
func (s *series) add(v float64) {
	s.samples = append(s.samples, v)
	fmt.Fprintf(os.Stderr, "%s, %s: %s\n", s.what, s.by, shown(v, s.unit))
}

// quantile returns the sample below which the given part of all samples lies.
func (s *series) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s.samples))
	if n := len(sorted); q == 0.5 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// sheet collects the figures of one benchmark.
type sheet struct {
	title  string
	series []*series
	notes  []string
}

// figure returns the series of a figure, a new one when it is named first.
func (s *sheet) figure(what, by, unit, target string) *series {
	for _, f := range s.series {
		if f.what == what && f.by == by && f.unit == unit {
			return f
		}
	}
	f := &series{what: what, by: by, unit: unit, target: target}
	s.series = append(s.series, f)
	return f
}

func (s *sheet) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// print reports every figure as a benchmark of its own, and then all of them as a table.
func (s *sheet) print(b *testing.B) {
	b.Helper()
	for _, f := range s.series {
		if len(f.samples) == 0 {
			continue
		}
		name := fmt.Sprintf("%s/by=%s", dashed(f.what), dashed(f.by))
		b.Run(name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(f.quantile(0.5), f.unit)
		})
	}
	var t strings.Builder
	fmt.Fprintf(&t, "\n### %s\n\n%s\n\n| what | by | median | p99 | worst | n | target |\n|---|---|---|---|---|---|---|\n", s.title, machine())
	for _, f := range s.series {
		if len(f.samples) == 0 {
			continue
		}
		worst := slices.Max(f.samples)
		if f.unit == "req/s" {
			worst = slices.Min(f.samples)
		}
		p99 := "–" // of few samples it is the worst
		if len(f.samples) >= 100 {
			p99 = shown(f.quantile(0.99), f.unit)
		}
		fmt.Fprintf(&t, "| %s | %s | %s | %s | %s | %d | %s |\n", f.what, f.by, shown(f.quantile(0.5), f.unit), p99, shown(worst, f.unit), len(f.samples), f.target)
	}
	for _, n := range s.notes {
		fmt.Fprintf(&t, "\n%s\n", n)
	}
	fmt.Println(t.String())
}

// scope ends what was started in a part of a benchmark when that part ends.
type scope struct {
	*testing.B

	mu       sync.Mutex
	cleanups []func()
}

// Cleanup implements testing.TB.
func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// during calls f, and then what it gave to Cleanup.
func during(b *testing.B, f func(b *scope)) {
	s := &scope{B: b}
	defer func() {
		for _, f := range slices.Backward(s.cleanups) {
			f()
		}
	}()
	f(s)
}

func dashed(s string) string { return strings.ReplaceAll(s, " ", "-") }

func shown(v float64, unit string) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}

// machine says on what the figures were taken, and what else it is doing.
func machine() string {
	load, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(load), " ")
	model := "unknown processor"
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(cpu)) {
			if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	kernel, _ := exec.Command("uname", "-sr").Output()
	return fmt.Sprintf("%d × %s, %s, %s; load %s at the end", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), runtime.Version(), one)
}
