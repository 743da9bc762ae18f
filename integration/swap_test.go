package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// openDataplane prepares to put certificates into a HAProxy without a sidecar.
func openDataplane(t *testing.T, h *fixture.HAProxy) *dataplane.HAProxy {
	t.Helper()
	dp, err := dataplane.Open(dataplane.Config{Socket: h.Socket(), StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dp.Close(); err != nil {
			t.Error(err)
		}
	})
	return dp
}

func deploy(t *testing.T, dp *dataplane.HAProxy, name string, b *store.Bundle) {
	t.Helper()
	if _, err := dp.Deploy(t.Context(), dataplane.Unit{Name: name, Bundle: b}); err != nil {
		t.Fatal(err)
	}
}

// Clients on new and on kept connections notice nothing of 200 swaps, and after a swap has returned no handshake sees
// the certificate that was replaced.
func TestSwaps(t *testing.T) {
	const name, swaps = "shop.example.com", 200
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		dp, ca, before := openDataplane(t, h), storetest.NewCA(t, "Swaps"), pid(t, h)
		leaf := storetest.Leaf{Domains: []string{name}, NotBefore: time.Now().Add(-time.Hour)}
		var places sync.Map
		issue := func(place int) *store.Bundle {
			b := ca.Bundle(leaf)
			places.Store(b.Serial, place)
			return b
		}
		deploy(t, dp, "shop", issue(0))

		clients := newClients(h.HTTPS.Addr(), func(serial string) int {
			place, ok := places.Load(serial)
			if !ok {
				return -1
			}
			return place.(int)
		})
		clients.know(name)
		load := fixture.StartLoad(fixture.LoadOptions{Addr: h.HTTPS.Addr(), Name: name, New: 2, KeepAlive: 2, Pause: 4 * time.Millisecond,
			Saw: func(s fixture.Served, began time.Time) { clients.saw(name, s, began) }})
		awaitRequests(t, load, 100)
		took := make([]time.Duration, 0, swaps)
		for i := range swaps {
			b := issue(i + 1)
			begun := time.Now()
			deploy(t, dp, "shop", b)
			took = append(took, time.Since(begun))
			clients.mark(name, i+1)
		}
		awaitRequests(t, load, load.Report().Requests+100)
		report := load.Stop()

		if report.Failed != 0 {
			t.Errorf("%d of %d requests failed: %v", report.Failed, report.Requests, report.Errors)
		}
		for _, err := range clients.stop() {
			t.Error(err)
		}
		if now := pid(t, h); now != before {
			t.Errorf("HAProxy was process %d and is %d", before, now)
		}
		slices.Sort(took)
		t.Logf("%d swaps, file included: p50 %v, longest %v; %d handshakes, %d requests, %d certificates seen",
			swaps, took[swaps/2], took[swaps-1], report.Handshakes, report.Requests, len(report.Serials))
	})
}

// A reload reads files while certificates are swapped, so that the new worker may have an older one. The sidecar repairs
// it within two seconds, with 4,000 certificates loaded.
func TestSwapMeetsReload(t *testing.T) {
	const name, loaded, limit = "shop.example.com", 4000, 2 * time.Second
	theirs := writeCertificates(t, loaded)
	eachVersion(t, func(t *testing.T, version string) {
		var h *fixture.HAProxy
		w := startWorld(t, worldOptions{late: true, haproxy: fixture.HAProxyOptions{Version: version}})
		h = w.haproxy
		w.bind("strict-sni crt-list " + h.CrtList() + " crt-list " + theirs)
		w.set("SPOACME_CRT_LIST", h.CrtList())
		w.restart()
		w.runSidecar()
		w.served(name)
		w.clients.tolerate(name)
		for range 5 {
			w.interrupt(func() error { return w.renewDuring(h.Reload) })
			if seen := w.clients.seenBack(name); seen.times > 0 {
				repaired := seen.last.Sub(seen.first)
				t.Logf("the new worker served a replaced certificate to %d connections, for %v", seen.times, repaired)
				if repaired > limit {
					t.Errorf("repaired after %v, at most %v is promised", repaired, limit)
				}
				return
			}
		}
		t.Error("no swap met a reload")
	})
}

// renewDuring renews again and again while a reload is under way, and returns when all is at rest. HAProxy drops the
// questions to its agent that are under way in a worker that ends, so a renewal may fail then.
func (w *world) renewDuring(reload func(context.Context) error) error {
	w.authority.patient(true)
	defer w.authority.patient(false)
	done := make(chan error, 1)
	go func() { done <- reload(w.t.Context()) }()
	for over := false; ; {
		out, failed := w.try("renew", "shop")
		if over && failed != nil {
			return fmt.Errorf("renew: %w: %s", failed, out)
		}
		if over {
			return fixture.Await(w.t.Context(), settleTimeout, w.settled)
		}
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			over = true
		default:
		}
	}
}

// writeCertificates writes n certificates and returns the path of their crt-list.
func writeCertificates(t *testing.T, n int) string {
	t.Helper()
	dir, ca, key := t.TempDir(), storetest.NewCA(t, "Others"), storetest.NewKey(t)
	list := filepath.Join(dir, "crt-list")
	var lines []byte
	for i := range n {
		b := ca.Bundle(storetest.Leaf{Domains: []string{fmt.Sprintf("c%04d.example.net", i)}, Key: key})
		file := filepath.Join(dir, fmt.Sprintf("c%04d.pem", i))
		if err := os.WriteFile(file, b.PEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, file...), '\n')
	}
	if err := os.WriteFile(list, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	return list
}

// However certificates are written, `haproxy -c` accepts what is on disk at any moment.
func TestEveryStateOnDiskIsAccepted(t *testing.T) {
	const added, replaced, removed = 500, 400, 100
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		dp, ca, key := openDataplane(t, h), storetest.NewCA(t, "Writes"), storetest.NewKey(t)
		write := func(i int) {
			name := fmt.Sprintf("c%04d", i)
			deploy(t, dp, name, ca.Bundle(storetest.Leaf{Domains: []string{name + ".example.com"}, Key: key}))
		}
		write(0)
		ctx, cancel := context.WithCancel(t.Context())
		checks, done := 0, make(chan error, 1)
		go func() {
			for ctx.Err() == nil {
				if out, err := h.Check(context.Background()); err != nil {
					done <- fmt.Errorf("%w\n%s", err, out)
					return
				}
				checks++
			}
			done <- nil
		}()
		for i := 1; i < added; i++ {
			write(i)
		}
		for i := range replaced {
			write(i)
		}
		for i := range removed {
			if err := dp.Remove(t.Context(), fmt.Sprintf("c%04d", added-1-i), false); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if checks < 10 {
			t.Errorf("only %d checks", checks)
		}
		t.Logf("%d writes, accepted %d times", added+replaced+removed, checks)
	})
}
