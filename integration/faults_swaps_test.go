package integration

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

const alone = "SWAPS_ALONE"

// TestManySwaps: ten thousand swaps leave memory, goroutines and HAProxy as they were. They are made in a process of their
// own, where no other test makes garbage.
func TestManySwaps(t *testing.T) {
	t.Parallel()
	if os.Getenv(alone) != "" {
		manySwaps(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestManySwaps$", "-test.v")
	cmd.Env = append(os.Environ(), alone+"=1")
	out, err := fixture.Output(cmd)
	if t.Logf("%s", out); err != nil || !strings.Contains(string(out), "10000 swaps") {
		t.Error(err)
	}
}

func manySwaps(t *testing.T) {
	top, err := os.MkdirTemp("/dev/shm", "swaps") // the disk is not what is tested
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Dir: top})
	hap, err := dataplane.Open(dataplane.Config{Socket: h.Socket(), StateDir: filepath.Join(top, "state")})
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(top, "state"), 0o700))
	t.Cleanup(func() { must(t, hap.Close()) })
	bundles := twins(t, 2)
	worker, err := h.PID()
	must(t, err)
	measure := func() (heap, rss uint64, goroutines int) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, residentKB(t, worker), runtime.NumGoroutine()
	}
	const warm, total = 1000, 10_000
	var heap, rss uint64
	var goroutines int
	begun := time.Now()
	for i := range total {
		if i == warm {
			heap, rss, goroutines = measure()
		}
		got, err := hap.Deploy(t.Context(), dataplane.Unit{Name: "shop", Bundle: bundles[i%2]})
		if err != nil || got.Fingerprint != bundles[i%2].Fingerprint {
			t.Fatalf("swap %d: %+v %v", i, got, err)
		}
	}
	took := time.Since(begun)
	heap2, rss2, goroutines2 := measure()
	t.Logf("%d swaps, %v each; after %d and after all: heap %d and %d kB, haproxy %d and %d kB, goroutines %d and %d", total,
		(took / total).Round(time.Microsecond), warm, heap>>10, heap2>>10, rss, rss2, goroutines, goroutines2)
	if heap2 > heap+2<<20 || rss2 > rss+4<<10 || goroutines2 > goroutines+5 {
		t.Error("memory grows with swaps")
	}
	if serial := serving(t, h, "shop.example.com").Serial; serial != bundles[(total-1)%2].Serial {
		t.Errorf("served is %s", serial)
	}
}

// twins returns certificates for one name with the same dates, so that none is better than another.
func twins(t *testing.T, n int) []*store.Bundle {
	f := newForger(t)
	var all []*store.Bundle
	for i := range n {
		key := newKey(t)
		leaf := f.sign(&x509.Certificate{
			SerialNumber: big.NewInt(int64(1000 + i)), DNSNames: []string{"shop.example.com"}, NotBefore: f.root.NotBefore,
			NotAfter: f.root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}, f.root, key.Public())
		der, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		b, err := store.ParseBundle(chainOf(leaf, f.root), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		must(t, err)
		all = append(all, b)
	}
	return all
}

// residentKB is the memory of a process.
func residentKB(t *testing.T, pid int) (kB uint64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kB); err == nil {
			return kB
		}
	}
	t.Error("no VmRSS")
	return 0
}
