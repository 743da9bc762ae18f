package integration

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/spoa"
)

// startAgent serves the table to the HAProxy until the test ends.
func startAgent(t *testing.T, h *fixture.HAProxy, table *spoa.Table) {
	t.Helper()
	ln, err := net.Listen("tcp", h.Agent.Addr())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- spoa.New(spoa.Config{Table: table}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestChallengeIsAnswered(t *testing.T) {
	const (
		path    = "/.well-known/acme-challenge/"
		token   = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
		keyAuth = token + ".nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ"
	)
	tests := []struct {
		config, path string
		status       int
		body         string
	}{
		{"haproxy.cfg", path + token, http.StatusOK, keyAuth},
		{"haproxy.cfg", path + token + "?x=1", http.StatusOK, keyAuth},
		{"haproxy.cfg", path + "unknown", http.StatusNotFound, "unknown token"},
		{"haproxy.cfg", path, http.StatusNotFound, "unknown token"},
		{"haproxy.cfg", path + strings.Repeat("a", 10_000), http.StatusNotFound, "unknown token"},
		{"haproxy.cfg", path + "..%2f" + token, http.StatusNotFound, "unknown token"},
		{"snippet.cfg", path + token, http.StatusOK, keyAuth},
		{"snippet.cfg", path + "unknown", http.StatusOK, "yours\n"},
	}
	eachVersion(t, func(t *testing.T, version string) {
		running := make(map[string]*fixture.HAProxy)
		for _, test := range tests {
			h := running[test.config]
			if h == nil {
				h = fixture.StartHAProxy(t, fixture.HAProxyOptions{
					Version: version, Config: filepath.Join(fixture.Root(), "haproxy-conf", test.config),
				})
				table := new(spoa.Table)
				if err := table.Publish("order", 1, map[string]string{token: keyAuth}); err != nil {
					t.Fatal(err)
				}
				startAgent(t, h, table)
				awaitAgent(t, h, "UP")
				running[test.config] = h
			}
			status, body := get(t, h.HTTP, test.path)
			if status != test.status || body != test.body {
				t.Errorf("%s: GET %.80s: %d %q, want %d %q", test.config, test.path, status, body, test.status, test.body)
			}
		}
	})
}
