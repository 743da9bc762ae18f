package integration

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// eachVersion runs a test on every HAProxy version.
func eachVersion(t *testing.T, test func(t *testing.T, version string)) {
	t.Helper()
	for _, version := range fixture.Versions() {
		t.Run("haproxy "+version, func(t *testing.T) { test(t, version) })
	}
}

// get returns the status and the body of a page; it follows no redirect.
func get(t *testing.T, port *fixture.Port, path string) (int, string) {
	t.Helper()
	client := &http.Client{
		Timeout:       10 * time.Second,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Get("http://" + port.Addr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// noCertificateYet is the only thing that `haproxy -c` has to say on an empty crt-list.
const noCertificateYet = "no SSL certificate specified for bind"

func TestConfigurationIsAccepted(t *testing.T) {
	eachVersion(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		out, err := h.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(out, "[WARNING]") != 1 || !strings.Contains(out, noCertificateYet) {
			t.Errorf("with an empty crt-list haproxy -c says:\n%s", out)
		}
		addCertificateFile(t, h, "shop", "shop.example.com")
		if out, err = h.Check(t.Context()); err != nil || strings.Contains(out, "[") {
			t.Errorf("with a certificate haproxy -c says: %v\n%s", err, out)
		}
	})
}

// addCertificateFile puts a self-signed certificate on disk, as HAProxy reads it at its next start.
func addCertificateFile(t *testing.T, h *fixture.HAProxy, name string, domains ...string) string {
	t.Helper()
	bundle, err := fixture.SelfSigned(domains...)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(h.CrtList()), name+".pem")
	if err := os.WriteFile(file, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := os.OpenFile(h.CrtList(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	if _, err := list.WriteString(file + "\n"); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestHAProxyFixture(t *testing.T) {
	eachVersion(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		first := pid(t, h)
		if _, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), "shop.example.com"); err == nil {
			t.Error("a certificate is served although the crt-list is empty")
		}

		addCertificateFile(t, h, "shop", "shop.example.com")
		if err := h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := pid(t, h)
		if second == first {
			t.Errorf("pid %d before and after a reload", first)
		}
		serial := serving(t, h, "shop.example.com").Serial

		if err := h.Edit(func(s string) string { return s + "\nnonsense\n" }); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); !errors.Is(err, fixture.ErrRefused) {
			t.Errorf("reload of nonsense: %v", err)
		}
		if got := pid(t, h); got != second {
			t.Errorf("pid after a refused reload: %d, want %d", got, second)
		}
		if err := h.Edit(func(s string) string { return strings.ReplaceAll(s, "\nnonsense\n", "") }); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Errorf("reload after a refused one: %v", err)
		}

		h.Kill9()
		if err := h.Restart(); err != nil {
			t.Fatal(err)
		}
		if got := serving(t, h, "shop.example.com").Serial; got != serial {
			t.Errorf("serial after a restart: %s, want %s", got, serial)
		}
		last := pid(t, h)
		h.Stop()
		if fixture.Alive(last) {
			t.Errorf("worker %d is alive after Stop", last)
		}
	})
}

func pid(t *testing.T, h *fixture.HAProxy) int {
	t.Helper()
	pid, err := h.PID()
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func serving(t *testing.T, h *fixture.HAProxy, name string) fixture.Served {
	t.Helper()
	served, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), name)
	if err != nil {
		t.Fatal(err)
	}
	return served
}

// With the agent known to be down a challenge is answered, or passed on, without waiting for it.
func TestAgentDown(t *testing.T) {
	const challenge = "/.well-known/acme-challenge/unknown"
	tests := []struct {
		config string
		status int
		body   string
	}{
		{"haproxy.cfg", http.StatusServiceUnavailable, "agent down"},
		{"snippet.cfg", http.StatusOK, "yours\n"},
	}
	eachVersion(t, func(t *testing.T, version string) {
		for _, test := range tests {
			h := fixture.StartHAProxy(t, fixture.HAProxyOptions{
				Version: version, Config: filepath.Join(fixture.Root(), "haproxy-conf", test.config),
			})
			if out, err := h.Check(t.Context()); err != nil || strings.Count(out, "[WARNING]") != strings.Count(out, noCertificateYet) {
				t.Errorf("%s: haproxy -c says: %v\n%s", test.config, err, out)
			}
			awaitAgent(t, h, "DOWN")
			start := time.Now()
			status, body := get(t, h.HTTP, challenge)
			if status != test.status || body != test.body {
				t.Errorf("%s: %d %q, want %d %q", test.config, status, body, test.status, test.body)
			}
			if took := time.Since(start); took > 200*time.Millisecond {
				t.Errorf("%s: the answer took %v", test.config, took)
			}
			if status, _ := get(t, h.HTTP, "/other"); status/100 != 3 {
				t.Errorf("%s: another path: %d, want a redirect", test.config, status)
			}
		}
	})
}

// awaitAgent waits until HAProxy says that of its agent.
func awaitAgent(t *testing.T, h *fixture.HAProxy, state string) {
	t.Helper()
	err := fixture.Await(context.Background(), 10*time.Second, func() error {
		stat, err := h.Command("show stat")
		if err != nil {
			return err
		}
		for line := range strings.Lines(stat) {
			if columns := strings.Split(line, ","); columns[0] == "acme_agent" && columns[1] == "agent" {
				if columns[17] == state {
					return nil
				}
				return errors.New("the agent is " + columns[17])
			}
		}
		return errors.New("no agent in show stat")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The statistics page and the exporter know the backends that certificates are watched by.
func TestStatistics(t *testing.T) {
	eachVersion(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		for path, want := range map[string]string{
			"/":        "certificates",
			"/;csv":    "\nacme_agent,agent,",
			"/metrics": `haproxy_server_status{proxy="acme_agent",server="agent"`,
		} {
			if status, body := get(t, h.Stats, path); status != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("%s: %d without %q", path, status, want)
			}
		}
	})
}
