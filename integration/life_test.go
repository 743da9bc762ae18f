package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
)

// eachVersionAtOnce runs a test on every HAProxy version, as many at once as there are processors.
func eachVersionAtOnce(t *testing.T, test func(t *testing.T, version string)) {
	t.Helper()
	eachVersion(t, func(t *testing.T, version string) {
		t.Parallel()
		test(t, version)
	})
}

// The life of certificates in a HAProxy that is never reloaded: the first one, its renewal, a second one, its removal.
func TestLife(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{haproxy: fixture.HAProxyOptions{Version: version}})
		before := pid(t, w.haproxy)
		first := w.served("shop.example.com")
		if serial := w.served("www.shop.example.com"); serial != first {
			t.Errorf("%s for one name, %s for the other", first, serial)
		}

		out := w.run("renew", "shop")
		second := serving(t, w.haproxy, "shop.example.com").Serial
		if second == first || !strings.Contains(out, "served by HAProxy, serial "+second) {
			t.Errorf("%s became %s, and renew says:\n%s", first, second, out)
		}

		out = w.run("issue", "blog", "blog.example.com")
		if serial := w.served("blog.example.com"); !strings.Contains(out, "served by HAProxy, serial "+serial) {
			t.Errorf("%s is served, and issue says:\n%s", serial, out)
		}

		w.clients.forget("blog.example.com")
		w.run("remove", "blog")
		if _, err := fixture.Fetch(t.Context(), w.haproxy.HTTPS.Addr(), "blog.example.com"); err == nil {
			t.Error("a removed certificate is served")
		}
		if list, err := os.ReadFile(w.haproxy.CrtList()); err != nil || string(list) != w.pem("shop")+"\n" {
			t.Errorf("the crt-list after a removal: %q %v", list, err)
		}
		if out, err := w.try("remove", "shop"); err == nil || !strings.Contains(out, "SPOACME_CERTS") {
			t.Errorf("what haproxy.cfg asks for can be removed: %v\n%s", err, out)
		}

		w.samePID(before)
		if n := len(w.pebble.Orders()); n != 3 {
			t.Errorf("%d orders, want 3", n)
		}
	})
}
