package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/status"
)

// A fleet's store knows the CAs from its beginning: with others everything begins anew. A single node changes them while it runs.
func TestCAsOfAFleetAreStructural(t *testing.T) {
	for store, want := range map[string]bool{"consul://127.0.0.1:8500/le": true, "file:///var/lib/spoacme": false} {
		before := settings.Settings{Store: store, CAs: []string{"https://one.example/dir"}}
		after := before
		after.CAs = []string{"https://one.example/dir", "https://two.example/dir"}
		if anew := !slices.Equal(structural(before), structural(after)); anew != want {
			t.Errorf("%s: begins anew: %v, want %v", store, anew, want)
		}
	}
}

// haproxy is a stats socket that says who it is and what its settings are, unless it says nothing of them.
type haproxy struct {
	mu       sync.Mutex
	pid      int
	started  time.Time
	settings map[string]string
	mute     int // how often it closes the connection instead of telling its settings
}

func (h *haproxy) answer(command string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case strings.Contains(command, "show env"):
		if h.mute > 0 {
			h.mute--
			return ""
		}
		var b strings.Builder
		for k, v := range h.settings {
			fmt.Fprintf(&b, "%s=%s\n", k, v)
		}
		return b.String() + "\n"
	case strings.Contains(command, "show info"):
		return fmt.Sprintf("Name: HAProxy\nVersion: 3.2.0\nPid: %d\nUptime_sec: %d\n\n", h.pid, int(time.Since(h.started).Seconds()))
	}
	return "Unknown command.\n\n"
}

// reload gives it another process, which does not tell its settings at once.
func (h *haproxy) reload(mute int, name, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pid, h.started = h.pid+1, time.Now()
	h.mute = mute
	h.settings[name] = value
}

// listen answers on a socket until the test ends.
func (h *haproxy) listen(t *testing.T) (socket string) {
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				if n, err := c.Read(buf); err == nil {
					_, _ = io.WriteString(c, h.answer(string(buf[:n])))
				}
			}()
		}
	}()
	return socket
}

// A process that does not tell its settings when it is first asked is asked again.
func TestSettingsAreAskedForAgain(t *testing.T) {
	dir := t.TempDir()
	h := &haproxy{pid: 100, started: time.Now(), settings: map[string]string{
		"SPOACME_STORE": "file://" + filepath.Join(dir, "store"), "SPOACME_AGENT": "unix@" + filepath.Join(dir, "agent"),
		"SPOACME_HTTP": "off", "SPOACME_AGENT_CHECK": "off", "SPOACME_CERTS": "", "SPOACME_CA": "https://127.0.0.1:1/directory",
	}}
	control := filepath.Join(dir, "control")
	r := &runner{log: slog.New(slog.DiscardHandler), level: new(slog.LevelVar), env: map[string]string{
		"SPOACME_SOCKET": h.listen(t), "SPOACME_STATE": filepath.Join(dir, "state"), "SPOACME_CONTROL": control,
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cl := newClient(control)
	await := func(what string, ok func(status.View) bool) {
		t.Helper()
		var v status.View
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
			err := cl.call(t.Context(), "/status", nil, &v)
			if err == nil && ok(v) {
				return
			}
			select {
			case <-t.Context().Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		t.Fatalf("%s: not so: %+v", what, v)
	}
	await("it has seen the first process", func(v status.View) bool { return v.HAProxy.PID == 100 })
	h.reload(3, "SPOACME_CERTS", "shop")
	h.reload(3, "SPOACME_CERT_shop", "shop.example.com")
	await("what the new process asks for is known", func(v status.View) bool {
		_, ok := v.Certificate("shop")
		return ok
	})
}
