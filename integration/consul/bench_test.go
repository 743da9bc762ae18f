package consul_test

import (
	"fmt"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

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
