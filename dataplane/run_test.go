package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// liveSource is a store that changes.
type liveSource struct {
	mu sync.Mutex
	m  mapSource
}

func (l *liveSource) set(name string, b *store.Bundle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m = maps.Clone(l.m)
	if l.m == nil {
		l.m = mapSource{}
	}
	l.m[name] = b
}

func (l *liveSource) now() mapSource {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m
}

func (l *liveSource) List(ctx context.Context) ([]Want, error) { return l.now().List(ctx) }
func (l *liveSource) Load(ctx context.Context, name string) (*store.Bundle, error) {
	return l.now().Load(ctx, name)
}

// run starts Run and waits for its end after the test.
func run(t testing.TB, h *HAProxy, src Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, src) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func allGood(h *HAProxy, n int) bool {
	r := h.Report()
	if len(r.Certificates) != n || r.Err != nil {
		return false
	}
	for i := range r.Certificates {
		if !r.Certificates[i].Good() {
			return false
		}
	}
	return true
}

// TestRealReloadMeetsSwap: a swap at any moment of a reload with 4,000 certificates is right within 2 s of the new
// worker's first answer.
func TestRealReloadMeetsSwap(t *testing.T) {
	n := 4000
	if testing.Short() {
		n = 400
	}
	c := newCA(t)
	bundles := issueMany(t, c, n)
	each(t, func(t *testing.T, version string) {
		s, _ := withList(t, version)
		s.fill(bundles)
		src := &liveSource{m: bundles}
		begun := time.Now()
		s.start()
		load := time.Since(begun)
		h := s.open()
		run(t, h, src)
		s.wait("everything is compared", func() bool { return allGood(h, n) })
		for i := range 3 {
			old := s.pid()
			s.signalReload()
			pauseFor(load * time.Duration(i+1) / 4)
			name := "c00000"
			b := c.issue(t, leaf{names: []string{name + ".example"}, age: time.Duration(10-i) * time.Minute})
			src.set(name, b)
			h.Poke(name)
			s.wait("a new worker answers", func() bool { p := s.pid(); return p != 0 && p != old })
			came := time.Now()
			wrong := s.serves(name+".example") != b.Fingerprint
			s.wait("the client gets the new certificate", func() bool { return s.serves(name+".example") == b.Fingerprint })
			took := time.Since(came)
			t.Logf("swap %s into a reload of %s: first served wrong %t, right after %s", load*time.Duration(i+1)/4, load, wrong, took)
			if took > 2*time.Second {
				t.Fatalf("repaired after %s", took)
			}
			s.wait("the reload is over", func() bool {
				return allGood(h, n) && strings.Count(s.workers(), "\n") <= 1
			})
		}
	})
}

// workers lists the processes of the group except the master.
func (s *site) workers() string {
	pids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", s.cmd.Process.Pid))
	return strings.ReplaceAll(strings.TrimSpace(string(pids)), " ", "\n")
}

// TestRealLifecycle: HAProxy dies, comes back with old files, is reloaded; somebody deletes files and lines.
func TestRealLifecycle(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open()
		src := &liveSource{}
		shop := c.issue(t, leaf{names: []string{"shop.example"}, age: 3 * time.Hour})
		src.set("shop", shop)
		run(t, h, src)
		s.wait("the first one is served", func() bool { return s.serves("shop.example") == shop.Fingerprint && allGood(h, 1) })

		// Dead: the files follow, and it restarts with them.
		s.kill9()
		renewed := c.issue(t, leaf{names: []string{"shop.example"}, age: 2 * time.Hour})
		added := c.issue(t, leaf{names: []string{"added.example"}, age: 2 * time.Hour})
		src.set("shop", renewed)
		src.set("added", added)
		h.Poke("shop", "added")
		s.wait("files are written while HAProxy is down", func() bool {
			text, _ := os.ReadFile(s.crtList)
			return fileHas(s, "shop", renewed) && fileHas(s, "added", added) && strings.Contains(string(text), "added.pem\n")
		})
		s.wait("the report says that it is down", func() bool { return errors.Is(h.Report().Err, ErrDown) })
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		s.start()
		if s.serves("shop.example") != renewed.Fingerprint || s.serves("added.example") != added.Fingerprint {
			t.Fatal("it did not restart with the current files")
		}
		s.wait("all good", func() bool { return allGood(h, 2) })

		// Restarted with an old file.
		s.kill9()
		s.write("crt/shop.pem", shop.PEM())
		s.start()
		s.wait("the old file is repaired", func() bool { return s.serves("shop.example") == renewed.Fingerprint && fileHas(s, "shop", renewed) })

		// Somebody removes file and line: they come back, and a reload changes nothing.
		if err := errors.Join(os.Remove(filepath.Join(s.crtDir, "added.pem")), os.WriteFile(s.crtList, []byte(filepath.Join(s.crtDir, "shop.pem")), 0o644)); err != nil {
			t.Fatal(err)
		}
		h.Poke()
		s.wait("file and line are back", func() bool {
			text, _ := os.ReadFile(s.crtList)
			return fileHas(s, "added", added) && strings.HasSuffix(string(text), "/shop.pem\n"+filepath.Join(s.crtDir, "added.pem")+"\n")
		})
		s.reload()
		if s.serves("added.example") != added.Fingerprint {
			t.Fatal("lost at a reload")
		}
	})
}

func fileHas(s *site, name string, b *store.Bundle) bool {
	text, err := os.ReadFile(filepath.Join(s.crtDir, name+".pem"))
	return err == nil && string(text) == string(b.PEM())
}

// countingSource counts how often a certificate is loaded.
type countingSource struct {
	mapSource
	loads atomic.Int64
}

func (c *countingSource) Load(ctx context.Context, name string) (*store.Bundle, error) {
	c.loads.Add(1)
	return c.mapSource.Load(ctx, name)
}

// TestDownLoadsOnce: with HAProxy down, what is on disk is not loaded from the store again and again; what has changed there is.
func TestDownLoadsOnce(t *testing.T) {
	c := newCA(t)
	src := &countingSource{mapSource: issueMany(t, c, 20)}
	h := openAt(t, "/nowhere/s")
	list := filepath.Join(h.asked.CrtDir, "crt-list")
	h.SetPlace(h.asked.CrtDir, list)
	if err := writeFile(list, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for round, want := range []int64{20, 20, 20, 21, 22} {
		switch round {
		case 3:
			src.mapSource["c00007"] = c.issue(t, leaf{names: []string{"c00007.example"}})
		case 4: // somebody meddled
			if err := os.Remove(filepath.Join(h.asked.CrtDir, "c00003.pem")); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.everything(t.Context(), src); !errors.Is(err, ErrDown) {
			t.Fatal(err)
		}
		if got := src.loads.Load(); got != want {
			t.Fatalf("round %d: %d loads, want %d", round, got, want)
		}
	}
	if text := string(must(os.ReadFile(list))); strings.Count(text, "\n") != 20 {
		t.Fatalf("crt-list has %q", text)
	}
	for name, b := range src.mapSource {
		if text := must(os.ReadFile(filepath.Join(h.asked.CrtDir, name+".pem"))); string(text) != string(b.PEM()) {
			t.Errorf("%s is not on disk", name)
		}
	}
}
