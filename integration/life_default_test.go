package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
)

// A client that names nothing gets the same certificate whatever is added, before and after a reload.
func TestDefaultCertificate(t *testing.T) {
	binds := map[string]func(h string) string{
		"crt-list": func(h string) string { return "crt " + h + "/default.pem crt-list " + h + "/spoacme/crt-list" },
		"crt DIR":  func(h string) string { return "crt " + h + "/spoacme/" },
	}
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		for kind, bind := range binds {
			t.Run(kind, func(t *testing.T) {
				w := startWorld(t, worldOptions{late: true, haproxy: fixture.HAProxyOptions{Version: version}})
				w.bind(bind(w.haproxy.ConfigDir()))
				w.runSidecar()
				before := serving(t, w.haproxy, "").Serial
				w.served("shop.example.com")
				w.run("issue", "aaa", "aaa.example.com")
				w.served("aaa.example.com")
				w.run("renew", "shop")
				if now := serving(t, w.haproxy, "").Serial; now != before {
					t.Errorf("%s became %s", before, now)
				}
				w.reload()
				if now := serving(t, w.haproxy, "").Serial; now != before {
					t.Errorf("%s became %s at a reload", before, now)
				}
			})
		}
	})
}

// bind gives the TLS frontend other certificates, and makes the files that must be there: default.pem, and in the
// certificate directory a file that is first by name.
func (w *world) bind(certificates string) {
	w.t.Helper()
	dir := filepath.Dir(w.haproxy.CrtList())
	err := w.haproxy.Edit(func(s string) string {
		return strings.Replace(s, "strict-sni crt-list "+w.haproxy.CrtList(), certificates, 1)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	bundle, err := fixture.SelfSigned("default.invalid")
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(w.haproxy.ConfigDir(), "default.pem")
	if strings.HasSuffix(certificates, dir+"/") {
		file = filepath.Join(dir, "0default.pem")
		if err := os.Remove(w.haproxy.CrtList()); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, bundle, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := w.haproxy.Restart(); err != nil {
		w.t.Fatal(err)
	}
}
