package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// rowVersions are those that can have a row per certificate.
func rowVersions() []string { return []string{"2.6", "3.0", "3.2"} }

// The row of a certificate goes through all its states, as a browser shows them: UP with the per cent that are left, DRAIN
// while renewal fails, DOWN when it has expired, UP when it was renewed (3.2).
func TestStatisticsPage(t *testing.T) {
	for _, version := range rowVersions() {
		t.Run("haproxy "+version, func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, worldOptions{
				late:    true,
				haproxy: fixture.HAProxyOptions{Version: version},
				pebble:  fixture.PebbleOptions{Lifetime: 30 * time.Second},
			})
			w.set("SPOACME_PROBE", w.haproxy.HTTPS.Addr())
			w.restart()
			w.runSidecar()
			first := w.served("shop.example.com")
			page := openPage(t, w.haproxy)

			leaf := serving(t, w.haproxy, "shop.example.com").Leaf()
			pageShows(t, page, "shop", "UP with the per cent left", func(row pageRow) bool {
				var shown, same int
				_, err := fmt.Sscanf(row.Weight, "%d/%d", &shown, &same)
				off := shown - percentLeft(leaf.NotBefore, leaf.NotAfter)
				return err == nil && strings.HasSuffix(row.Status, " UP") && row.Class == "active_up" && off >= 0 && off < 20 && shown < 100
			})
			w.authority.down(true)
			w.certificate("shop", status.Failing)
			pageShows(t, page, "shop", "DRAIN", func(row pageRow) bool { return strings.Contains(row.Status, "DRAIN") })
			w.statesWhileReloading(t, "DRAIN")
			w.expired("shop")
			row := pageShows(t, page, "shop", "DOWN", func(row pageRow) bool {
				return strings.Contains(row.Status, "DOWN") && row.Class == "active_down" && strings.Contains(row.Text, "expired")
			})
			t.Logf("%+v", row)

			w.authority.down(false)
			if version != "3.2" { // an authority that was down is left alone for a minute
				w.states["shop"] = status.Expired
				return
			}
			w.run("renew", "shop")
			w.servedAfter("shop.example.com", first)
			pageShows(t, page, "shop", "UP", func(row pageRow) bool { return strings.HasSuffix(row.Status, " UP") })
		})
	}
}

// expired waits for a certificate's end.
func (w *world) expired(name string) {
	w.t.Helper()
	v, err := w.view()
	if err != nil {
		w.t.Fatal(err)
	}
	c, _ := v.Certificate(name)
	err = fixture.Await(w.t.Context(), time.Until(c.Stored.NotAfter)+settleTimeout, func() error {
		if left := time.Until(c.Stored.NotAfter); left > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.certificate(name, status.Expired)
}

// statesWhileReloading reloads HAProxy and watches the row come back: it must never say anything else than the state.
func (w *world) statesWhileReloading(t *testing.T, state string) {
	t.Helper()
	before := pid(t, w.haproxy)
	w.reload()
	start := time.Now()
	awaitStat(t, w.haproxy, "certificates", "shop", func(row map[string]string) error {
		if !strings.HasPrefix(row["status"], state) && !strings.HasPrefix(row["status"], "MAINT") {
			t.Errorf("a row that was just added is %s, not %s", row["status"], state)
		}
		if !strings.HasPrefix(row["status"], state) {
			return fmt.Errorf("it is %s", row["status"])
		}
		return nil
	})
	if now := pid(t, w.haproxy); now == before {
		t.Error("HAProxy was not reloaded")
	}
	t.Logf("the row was back %v after the reload", time.Since(start))
}

// Without a probe a good certificate's row says "no check", and its weight says how good it is; on 2.2, which has no rows,
// the server of the agent says it, and never goes down for it.
func TestStatisticsText(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{haproxy: fixture.HAProxyOptions{Version: version}})
		w.served("shop.example.com")
		agent := func(text string) {
			t.Helper()
			awaitStat(t, w.haproxy, "acme_agent", "agent", func(row map[string]string) error {
				if row["status"] != "UP" {
					t.Errorf("the agent is %s", row["status"])
				}
				if !strings.Contains(row["last_agt"], text) {
					return fmt.Errorf("the agent's server says %q, not %q", row["last_agt"], text)
				}
				return nil
			})
		}
		agent("1 certificate, 1 ok")
		if version != "2.2" {
			awaitStat(t, w.haproxy, "certificates", "shop", func(row map[string]string) error {
				if row["status"] != "no check" || row["weight"] != "100" || !strings.Contains(row["last_agt"], "(expires in 89d, ") {
					return fmt.Errorf("the row is %s, weight %s, %q", row["status"], row["weight"], row["last_agt"])
				}
				return nil
			})
		}
		w.authority.down(true)
		if out, err := w.try("renew", "shop"); err == nil {
			t.Errorf("renewed by an authority that is down:\n%s", out)
		}
		w.states["shop"] = status.Failing
		agent("1 failing; shop: ")
	})
}
