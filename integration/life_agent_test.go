package integration

import (
	"net/http"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// In the moments in which the sidecar is dead and the health check has not seen it, a challenge is refused at once by the
// versions that see the refused connection, and after `timeout processing` by the others.
func TestSidecarJustKilled(t *testing.T) {
	limit := map[string]time.Duration{
		"2.2": 400 * time.Millisecond, "2.6": 1500 * time.Millisecond, "3.0": 1500 * time.Millisecond, "3.2": 400 * time.Millisecond,
	}
	eachVersion(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{haproxy: fixture.HAProxyOptions{Version: version}})
		w.served("shop.example.com")
		awaitAgent(t, w.haproxy, "UP")
		w.sidecar.Kill9()
		start := time.Now()
		code, _ := get(t, w.haproxy.HTTP, "/.well-known/acme-challenge/unknown")
		took := time.Since(start)
		if code != http.StatusServiceUnavailable || took > limit[version] {
			t.Errorf("%d after %v, want %d within %v", code, took, http.StatusServiceUnavailable, limit[version])
		}
		t.Logf("%d after %v", code, took)
		if err := w.sidecar.Restart(); err != nil {
			t.Fatal(err)
		}
	})
}
