package integration

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// Settings are what HAProxy has read: a changed line is followed after the reload, a dropped name is no longer renewed but
// goes on being served, and lines of a configuration that was refused never count, although versions before 3.2 keep
// variables of it over later reloads.
func TestSettings(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		w := startWorld(t, worldOptions{haproxy: fixture.HAProxyOptions{Version: version, Settings: map[string]string{
			"SPOACME_CERTS": "shop,blog", "SPOACME_CERT_blog": "blog.example.com",
		}}})
		first := w.served("shop.example.com")
		blog := w.served("blog.example.com")

		w.set("SPOACME_CERT_shop", "shop.example.com,www.shop.example.com,new.shop.example.com")
		w.reload()
		second := w.servedAfter("shop.example.com", first)
		if serial := w.served("new.shop.example.com"); serial != second {
			t.Errorf("%s for the new name, %s for the old one", serial, second)
		}

		w.set("SPOACME_CERTS", "shop", "SPOACME_CERT_blog", "")
		w.states["blog"] = status.Unwanted
		w.reload()
		w.certificate("blog", status.Unwanted)
		if serial := w.served("blog.example.com"); serial != blog {
			t.Errorf("%s became %s when nobody asked for it any more", blog, serial)
		}

		orders := len(w.pebble.Orders())
		w.refused("SPOACME_CERTS", "shop,ghost", "SPOACME_CERT_ghost", "ghost.example.com", "SPOACME_EMAIL", "ghost@example.com")
		if w.demands("ghost") {
			t.Error("a refused configuration counts")
		}
		w.set("SPOACME_CERTS", "shop", "SPOACME_CERT_ghost", "")
		w.reload()
		w.awaitProcess()
		if w.demands("ghost") || len(w.pebble.Orders()) != orders {
			t.Errorf("a refused configuration counts after the next reload: %v, %d orders", w.demands("ghost"), len(w.pebble.Orders())-orders)
		}

		w.set("SPOACME_CERTS", "shop,blog", "SPOACME_CERT_blog", "blog.example.com")
		delete(w.states, "blog")
		w.reload()
		w.certificate("blog", status.OK)
		if serial := w.served("blog.example.com"); serial != blog {
			t.Errorf("a good certificate was ordered again: %s became %s", blog, serial)
		}
	})
}

// refused tries a reload with these settings and a line that HAProxy does not know, and takes the line out again.
func (w *world) refused(settings ...string) {
	w.t.Helper()
	const nonsense = "\nnonsense\n"
	w.set(settings...)
	if err := w.haproxy.Edit(func(s string) string { return s + nonsense }); err != nil {
		w.t.Fatal(err)
	}
	var err error
	w.clients.interrupt(func() { err = w.haproxy.Reload(w.t.Context()) })
	if !errors.Is(err, fixture.ErrRefused) {
		w.t.Fatalf("reload of nonsense: %v", err)
	}
	if err := w.haproxy.Edit(func(s string) string { return strings.ReplaceAll(s, nonsense, "") }); err != nil {
		w.t.Fatal(err)
	}
}

// demands tells whether the sidecar knows of a certificate.
func (w *world) demands(name string) bool {
	w.t.Helper()
	v, err := w.view()
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.ContainsFunc(v.Certificates, func(c status.CertificateView) bool { return c.Name == name })
}

// awaitProcess waits until the sidecar has seen the process that HAProxy is now, and had the time to read its settings.
func (w *world) awaitProcess() {
	w.t.Helper()
	now := pid(w.t, w.haproxy)
	var seen time.Time
	err := fixture.Await(w.t.Context(), settleTimeout, func() error {
		v, err := w.view()
		if err != nil {
			return err
		}
		if v.HAProxy.PID != now {
			return errNotYet
		}
		if seen.IsZero() {
			seen = time.Now()
		}
		if time.Since(seen) < 2*time.Second { // settings are looked at every second
			return errNotYet
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}
