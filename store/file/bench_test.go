package file

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// BenchmarkCommit commits three records at a time, as the steps of an order do.
func BenchmarkCommit(b *testing.B) {
	for _, goroutines := range []int{1, 50, 200} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			s := openStore(b, b.TempDir(), Options{})
			lease := leaseOf(b, s)
			next := make(chan int)
			var wg sync.WaitGroup
			for g := range goroutines {
				wg.Go(func() {
					name := fmt.Sprint("c", g)
					for n := range next {
						text := fmt.Sprint(n)
						err := s.Commit(b.Context(), lease, nil, []store.Op{
							store.Put(&store.Attempt{Name: name, Error: text}),
							store.Put(&store.Budget{CA: name, Error: text}),
							store.Put(&store.Demand{Node: name, Since: time.Unix(1_800_000_000, 0)})})
						if err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ResetTimer()
			for n := range b.N {
				next <- n
			}
			close(next)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// fill writes n certificates of 5 kB.
func fill(b testing.TB, dir string, n int) {
	b.Helper()
	at := time.Unix(1_800_000_000, 0)
	r := &store.Certificate{Domains: []string{"a.example"}, Private: store.NewSecret([]byte(strings.Repeat("k", 300))),
		Chain:  "-----BEGIN CERTIFICATE-----\n" + strings.Repeat(strings.Repeat("A", 64)+"\n", 68) + "-----END CERTIFICATE-----\n",
		Serial: "abc", Fingerprint: strings.Repeat("0A", 20), NotBefore: at, NotAfter: at.AddDate(0, 0, 90), IssuedAt: at}
	if err := os.MkdirAll(filepath.Join(dir, string(store.KindIssued)), 0o700); err != nil {
		b.Fatal(err)
	}
	for i := range n {
		r.Name = fmt.Sprintf("c%05d", i)
		data, err := store.Encode(r, store.Plain{})
		if err != nil {
			b.Fatal(err)
		}
		edit(b, filepath.Join(dir, string(store.KindIssued), r.Name+recordSuffix), data)
	}
}

func BenchmarkTenThousand(b *testing.B) {
	dir := b.TempDir()
	fill(b, dir, 10_000)
	b.Run("open", func(b *testing.B) {
		for range b.N {
			_ = openStore(b, dir, Options{}).Close()
		}
	})
	s := openStore(b, dir, Options{ScanEvery: time.Hour})
	b.Run("list", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if l, err := s.List(b.Context(), store.KindIssued); err != nil || len(l.Entries) != 10_000 {
				b.Fatal(err, len(l.Entries))
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			key := store.Key{Kind: store.KindIssued, Name: fmt.Sprintf("c%05d", i%10_000)}
			if _, err := s.Get(b.Context(), key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("scan", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := s.scanAll(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
