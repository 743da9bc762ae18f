package status

import (
	"fmt"
	"testing"

	"github.com/spoacme/spoacme/store"
)

// The view is built anew for every question: at most once a second for agent checks.
func BenchmarkBuild10000(b *testing.B) {
	in := one(func(in *Input) {
		in.Wanted, in.Issued, in.Served = nil, nil, make(map[string]Served)
		for i := range 10000 {
			name := fmt.Sprintf("c%05d", i)
			in.Wanted = append(in.Wanted, wanted(name))
			in.Issued = append(in.Issued, issued(name, 54))
			in.Served[name] = Served{Fingerprint: ours}
		}
		in.Attempts = []*store.Attempt{failedAttempt(now, "x", "")}
	})
	b.ReportAllocs()
	for b.Loop() {
		Build(in)
	}
}
