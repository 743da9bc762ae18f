package dataplane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func deploy(t *testing.T, h *HAProxy, name string, b *store.Bundle) Served {
	t.Helper()
	s, err := h.Deploy(t.Context(), Unit{Name: name, Bundle: b})
	if err != nil {
		t.Fatal(err)
	}
	if s.Fingerprint != b.Fingerprint || s.Status != "Used" {
		t.Fatalf("served %+v, want %s used", s, b.Fingerprint)
	}
	return s
}

func TestRealDeployRemove(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open(func(c *Config) { c.timing.grace = time.Millisecond })
		pid := s.pid()
		first := c.issue(t, leaf{names: []string{"shop.example", "www.shop.example"}, age: time.Hour})
		deploy(t, h, "shop", first)
		if got := s.serves("www.shop.example"); got != first.Fingerprint {
			t.Fatalf("a client gets %s", got)
		}
		second := c.issue(t, leaf{names: []string{"shop.example"}})
		deploy(t, h, "shop", second)
		if got := s.serves("shop.example"); got != second.Fingerprint {
			t.Fatalf("a client gets %s", got)
		}
		other := c.issue(t, leaf{names: []string{"other.example"}, rsa: 2048})
		deploy(t, h, "other", other)
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		if s.pid() != pid {
			t.Fatal("HAProxy was reloaded")
		}
		s.reload()
		for name, b := range map[string]*store.Bundle{"shop.example": second, "other.example": other} {
			if got := s.serves(name); got != b.Fingerprint {
				t.Fatalf("after a reload a client of %s gets %s", name, got)
			}
		}
		got, err := h.Served(t.Context(), "other")
		if err != nil || got.Fingerprint != other.Fingerprint || got.Serial != other.Serial || !got.NotAfter.Equal(other.NotAfter) {
			t.Fatalf("served %+v, %v; want %+v", got, err, other)
		}
		if err := h.Remove(t.Context(), "shop", false); err != nil && !strings.Contains(err.Error(), "reload HAProxy") {
			t.Fatal(err)
		}
		if err := h.Remove(t.Context(), "other", false); err != nil {
			t.Fatal(err)
		}
		if text := string(must(os.ReadFile(s.crtList))); text != "" {
			t.Fatalf("crt-list has %q", text)
		}
		h.buryDead(t.Context())
		left := must(filepath.Glob(filepath.Join(s.crtDir, "*")))
		if !slices.Equal(left, []string{filepath.Join(s.crtDir, tmpDir), s.crtList}) {
			t.Fatalf("left on disk: %v", left)
		}
		if got := s.serves("other.example"); got == other.Fingerprint {
			t.Fatal("a removed certificate is served")
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRealDirectory(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := newSite(t, version, "crt DIR/crt/"), newCA(t)
		s.write("crt/0default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
		s.start()
		h := s.open()
		first := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour})
		deploy(t, h, "shop", first)
		second := c.issue(t, leaf{names: []string{"shop.example"}})
		deploy(t, h, "shop", second)
		if got := s.serves("shop.example"); got != second.Fingerprint {
			t.Fatalf("a client gets %s", got)
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		s.reload()
		if got := s.serves("shop.example"); got != second.Fingerprint {
			t.Fatalf("after a reload a client gets %s", got)
		}
		if err := h.Remove(t.Context(), "shop", false); err != nil {
			t.Fatal(err)
		}
		if got := s.serves("shop.example"); got == second.Fingerprint {
			t.Fatal("a removed certificate is served")
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
	})
}
