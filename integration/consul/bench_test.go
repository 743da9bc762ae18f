package consul_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// report names the median and the 99th percentile of some durations.
func report(b *testing.B, what string, all []time.Duration) {
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(all[len(all)/2]), what+"-p50-ms")
	b.ReportMetric(ms(all[len(all)*99/100]), what+"-p99-ms")
}

// crowd starts nodes and returns when all of them take part.
func crowd(b *testing.B, f *fleet, leader *consul.Store, count int) []*node {
	nodes := make([]*node, count)
	var wg sync.WaitGroup
	for i := range nodes {
		// As a restarted sidecar: it has its certificates on disk and looks only which of them are other ones now.
		wg.Go(func() { nodes[i] = f.startFrom(f.config(fmt.Sprint("n", i), i), true) })
	}
	wg.Wait()
	eventually(b, 60*time.Second, "all nodes are live", func() bool {
		list, err := leader.Nodes(b.Context())
		behind := slices.ContainsFunc(list, func(n consul.Node) bool { return !n.Live })
		return err == nil && len(list) == count && !behind
	})
	return nodes
}

func fill(b *testing.B, s store.Store, l store.Lease, count int) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range count {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c := certificate(fmt.Sprint("cert", i), i+1)
			if err := s.Commit(b.Context(), l, nil, []store.Op{store.Put(c)}); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkFeed measures from the start of a commit until the last node has read the certificate.
func BenchmarkFeed(b *testing.B) {
	for _, servers := range []int{1, 3} {
		c := fixture.StartConsul(b, fixture.ConsulOptions{Servers: servers})
		for _, certs := range []int{100, 10000} {
			for _, count := range []int{3, 10, 50} {
				b.Run(fmt.Sprintf("servers=%d/certs=%d/nodes=%d", servers, certs, count), func(b *testing.B) {
					f := newFleet(b, c)
					leader := f.open(f.config("leader", 0))
					l := lead(b, leader)
					fill(b, leader, l, certs)
					nodes := crowd(b, f, leader, count)
					eventually(b, 120*time.Second, "everything was read", func() bool {
						return !slices.ContainsFunc(nodes, func(n *node) bool { fp, _ := n.cert(fmt.Sprint("cert", certs-1)); return fp == "" })
					})
					var each, last []time.Duration
					for i := 0; b.Loop(); i++ {
						want := certificate("cert7", 1_000_000+i)
						start := time.Now()
						commit(b, leader, l, store.Put(want))
						var slowest time.Duration
						for _, n := range nodes {
							for {
								fp, when := n.cert("cert7")
								if fp == want.Fingerprint {
									each = append(each, when.Sub(start))
									slowest = max(slowest, when.Sub(start))
									break
								}
								<-time.After(time.Millisecond)
							}
						}
						last = append(last, slowest)
					}
					report(b, "node", each)
					report(b, "last", last)
				})
			}
		}
	}
}

// BenchmarkCommits measures how many commits a leader gets through when many ask at once.
func BenchmarkCommits(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprint("servers=", servers), func(b *testing.B) {
			f := newFleet(b, fixture.StartConsul(b, fixture.ConsulOptions{Servers: servers}))
			s := f.open(f.config("leader", 0))
			l := lead(b, s)
			b.SetParallelism(100)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if err := s.Commit(b.Context(), l, nil, []store.Op{store.Put(budget(fmt.Sprint(i)))}); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkBarrier measures publishing the tokens of an order and waiting for 50 nodes, for one order and for 50 at once.
func BenchmarkBarrier(b *testing.B) {
	for _, servers := range []int{1, 3} {
		c := fixture.StartConsul(b, fixture.ConsulOptions{Servers: servers})
		for _, orders := range []int{1, 50} {
			b.Run(fmt.Sprintf("servers=%d/orders=%d", servers, orders), func(b *testing.B) {
				f := newFleet(b, c)
				leader := f.open(f.config("leader", 0))
				l := lead(b, leader)
				crowd(b, f, leader, 50)
				var mu sync.Mutex
				var publish, barrier []time.Duration
				generation := uint64(0)
				for b.Loop() {
					var wg sync.WaitGroup
					for i := range orders {
						generation++
						g := generation
						wg.Go(func() {
							start := time.Now()
							order := challenges(fmt.Sprint("order", i), g)
							commit(b, leader, l, store.Put(order))
							published := time.Now()
							missing, err := leader.Barrier(within(b, 5*time.Second), g)
							if err != nil || len(missing) > 0 {
								b.Error(missing, err)
							}
							mu.Lock()
							defer mu.Unlock()
							publish = append(publish, published.Sub(start))
							barrier = append(barrier, time.Since(published))
						})
					}
					wg.Wait()
				}
				report(b, "publish", publish)
				report(b, "barrier", barrier)
			})
		}
	}
}
