package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestFirstCertificate takes the shortest way: haproxy.cfg asks for a certificate, HAProxy serves it.
func TestFirstCertificate(t *testing.T) {
	for _, version := range fixture.Versions() {
		t.Run(version, func(t *testing.T) {
			h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
			p := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: h.HTTP.Number})
			if err := h.Set("SPOACME_CA", p.Directory()); err != nil {
				t.Fatal(err)
			}
			if err := h.Restart(); err != nil {
				t.Fatal(err)
			}
			before, err := h.PID()
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			s := fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h, Pebble: p})
			err = fixture.Await(t.Context(), 20*time.Second, func() error {
				served, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), "shop.example.com")
				if err != nil {
					return err
				}
				roots, err := p.Roots(t.Context())
				if err != nil {
					return err
				}
				return served.Verify(roots, "www.shop.example.com")
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("served after %v\n%s", time.Since(start), s.Log())
			out, err := s.Run(t.Context(), "status")
			t.Logf("status: %v\n%s", err, out)
			out, err = s.Run(t.Context(), "renew", "shop")
			t.Logf("renew: %v\n%s", err, out)
			out, err = s.Run(t.Context(), "issue", "second", "second.example.com")
			t.Logf("issue: %v\n%s", err, out)
			ready, err := s.Get("/readyz")
			t.Logf("readyz: %v\n%s", err, ready)
			after, err := h.PID()
			if err != nil || after != before {
				t.Fatal(fmt.Errorf("pid %d became %d: %w", before, after, err))
			}
		})
	}
}
