// Package simulation runs the real issuer on several nodes at once against a store and a CA that fail in every way, in virtual
// time, and checks with every step what the fleet promises: one certificate for each decision, nothing worse served, tokens
// everywhere before the CA looks, nothing deleted. In most runs the store is a model of the contract of package store; in the
// others it is the real package store/consul, leader, writer and barrier included, on a model of Consul's servers. All that
// goes wrong is drawn from a seed:
//
//	go test ./integration/simulation -args -runs=18000 -consul=2000        # seeds 1 to 18000, and 1 to 2000 with Consul
//	go test ./integration/simulation -run Simulation -v -args -seed=4711   # one, told step by step; -run Consul for one with Consul
//	integration/simulation/mutations.sh                           # what the promises would be without the rules
package simulation

import (
	"flag"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	oneSeed    = flag.Uint64("seed", 0, "run this seed only and tell what happens")
	runs       = flag.Uint64("runs", defaultRuns(), "how many seeds to run; default: SPOACME_SIMULATIONS, or 1000")
	from       = flag.Uint64("from", 1, "the first seed")
	consulRuns = flag.Uint64("consul", 200, "how many seeds to run with the real store of a fleet")
	limit      = flag.Duration("for", 0, "begin no run after this time")
	most       = flag.Int("enough", 10, "how many seeds may fail before the rest is not run")
)

func defaultRuns() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("SPOACME_SIMULATIONS"), 10, 64); err == nil {
		return n
	}
	return 1000
}

// simulate runs a seed in a bubble of its own.
func simulate(t *testing.T, seed uint64, tr *trace, withConsul bool) (problems []string, c counts) {
	synctest.Test(t, func(*testing.T) {
		w := newWorld(seed, tr, withConsul)
		problems = w.run()
		c = w.count
	})
	return problems, c
}

func TestSimulation(t *testing.T) { simulation(t, *runs, false) }

// TestConsul has the real package store/consul on every node, and a model of Consul's servers behind it.
func TestConsul(t *testing.T) { simulation(t, *consulRuns, true) }

func simulation(t *testing.T, runs uint64, withConsul bool) {
	if *oneSeed != 0 {
		tr := &trace{}
		problems, c := simulate(t, *oneSeed, tr, withConsul)
		t.Log("\n" + strings.Join(tr.lines, "\n"))
		t.Logf("%+v", c)
		for _, p := range problems {
			t.Error(p)
		}
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // runs are many and small
	var next atomic.Uint64
	next.Store(*from - 1)
	total := totals{census: census{}}
	began := time.Now()
	t.Run("seeds", func(t *testing.T) {
		for shard := range runtime.GOMAXPROCS(0) {
			t.Run(strconv.Itoa(shard), func(t *testing.T) {
				t.Parallel()
				for seed := next.Add(1); seed < *from+runs && !total.enough() && (*limit == 0 || time.Since(began) < *limit); seed = next.Add(1) {
					problems, c := simulate(t, seed, nil, withConsul)
					total.add(seed, problems, c)
					if len(problems) > 0 {
						t.Errorf("-seed=%d: %s", seed, strings.Join(problems[:min(3, len(problems))], "\n\t"))
					}
				}
			})
		}
	})
	total.tell(t, time.Since(began))
}

// totals is what all runs came to.
type totals struct {
	mu       sync.Mutex
	runs     int
	failed   int
	sum      counts
	census   census
	slowest  time.Duration
	slowSeed uint64
}

func (s *totals) enough() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed >= *most
}

func (s *totals) add(seed uint64, problems []string, c counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs++
	if len(problems) > 0 {
		s.failed++
	}
	s.sum.certificates += c.certificates
	s.sum.orders += c.orders
	s.sum.terms += c.terms
	s.sum.steps += c.steps
	s.census.add(c.census)
	s.sum.late += c.late
	s.sum.refusedNames += c.refusedNames
	s.sum.afterLoss += c.afterLoss
	if c.converged > s.slowest {
		s.slowest, s.slowSeed = c.converged, seed
	}
}

func (s *totals) tell(t *testing.T, took time.Duration) {
	c := s.sum
	t.Logf("%d runs, %d of them with a broken promise, %d steps in %s: %d leaders, %d late writes refused, %d orders, %d names refused, "+
		"%d certificates (%d again after a loss); all as it should be within %s (seed %d)", s.runs, s.failed, c.steps, took.Round(time.Second),
		c.terms, c.late, c.orders, c.refusedNames, c.certificates, c.afterLoss, s.slowest.Round(time.Second), s.slowSeed)
	t.Logf("what went wrong or was done: %s", s.census)
}

// A seed tells the same story each time. With Consul that is so nearly always: what several goroutines of a store do in one moment, such
// as whether one takes part in the read of another, is chance.
func TestReplay(t *testing.T) {
	story := func(seed uint64) string {
		tr := &trace{}
		simulate(t, seed, tr, false)
		var lines []string
		for _, l := range tr.lines {
			if strings.HasSuffix(l, settled) {
				break
			}
			if !strings.Contains(l, "level=") { // what the issuers log of one moment has no order
				lines = append(lines, l)
			}
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	for seed := range uint64(10) {
		if a, b := story(seed+1), story(seed+1); a != b {
			t.Errorf("seed %d differs from itself", seed+1)
		}
	}
}
