package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// Whatever ends and comes back, in whichever order, the certificate that was served last is served again at once.
func TestRestarts(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{haproxy: fixture.HAProxyOptions{Version: version}})
		h := w.haproxy
		w.served("shop.example.com")
		w.run("renew", "shop")
		current := serving(t, h, "shop.example.com").Serial
		orders := len(w.pebble.Orders())
		still := func(what string) {
			t.Helper()
			if serial := serving(t, h, "shop.example.com").Serial; serial != current {
				t.Errorf("%s: %s became %s", what, current, serial)
			}
		}

		w.reload()
		still("a reload")
		w.restart()
		still("a restart")
		w.interrupt(func() error { h.Kill9(); return h.Restart() })
		still("HAProxy killed")

		w.sidecar.Kill9()
		still("the sidecar killed")
		if err := w.sidecar.Restart(); err != nil {
			t.Fatal(err)
		}
		w.certificate("shop", status.OK)
		still("the sidecar started again")

		w.sidecar.Kill9()
		w.interrupt(func() error { h.Kill9(); return h.Restart() })
		still("HAProxy killed while the sidecar is down")
		w.reload()
		still("a reload while the sidecar is down")
		if err := w.sidecar.Restart(); err != nil {
			t.Fatal(err)
		}
		w.certificate("shop", status.OK)

		if n := len(w.pebble.Orders()); n != orders {
			t.Errorf("%d orders for nothing", n-orders)
		}
		w.run("renew", "shop")
		if serial := serving(t, h, "shop.example.com").Serial; serial == current {
			t.Error("nothing is renewed after all that")
		}
	})
}

// A sidecar that is started before HAProxy waits for it, the first time; later it knows its settings, and renews while
// HAProxy is down.
func TestSidecarFirst(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{late: true, haproxy: fixture.HAProxyOptions{Version: version}})
		w.haproxy.Pause()
		w.launchSidecar()
		if err := w.haproxy.Restart(); err != nil {
			t.Fatal(err)
		}
		first := w.served("shop.example.com")

		w.interrupt(func() error {
			w.haproxy.Pause()
			w.sidecar.Kill9()
			// The line comes last, so it is what a crash of both may have left unwritten.
			if err := os.WriteFile(w.haproxy.CrtList(), nil, 0o644); err != nil {
				return err
			}
			if err := w.sidecar.Restart(); err != nil {
				return err
			}
			err := fixture.Await(t.Context(), settleTimeout, func() error {
				v, err := w.view()
				if err != nil {
					return err
				}
				if c, ok := v.Certificate("shop"); !ok || c.Stored == nil || c.Stored.Serial != first || v.Ready() {
					return fmt.Errorf("without HAProxy the status is %+v", v)
				}
				if list, err := os.ReadFile(w.haproxy.CrtList()); err != nil || !strings.Contains(string(list), "/shop.pem\n") {
					return fmt.Errorf("the crt-list is %q, %v", list, err)
				}
				return nil
			})
			return errors.Join(err, w.haproxy.Restart())
		})
		w.certificate("shop", status.OK)
		if n := len(w.pebble.Orders()); n != 1 {
			t.Errorf("%d orders, want 1", n)
		}
	})
}
