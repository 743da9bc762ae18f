package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// world is everything that runs.
type world struct {
	dir     string
	program string // spoacme, as it was named on the command line
	binary  string // the same, from everywhere
	haproxy *fixture.HAProxy
	pebble  *fixture.Pebble
	sidecar *fixture.Sidecar
}

// longestTemp leaves room for the path of a unix socket below it.
const longestTemp = 48

func newWorld(program string) (*world, error) {
	parent := os.TempDir()
	if len(parent) > longestTemp {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "spoacme-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	binary, err := filepath.Abs(program)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", program, err)
	}
	return &world{dir: dir, program: program, binary: binary}, nil
}

// folder makes a folder for one of the servers.
func (w *world) folder(name string) (string, error) {
	dir := filepath.Join(w.dir, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// launch starts HAProxy and the ACME server. The sidecar comes later.
func (w *world) launch(ctx context.Context, screen *screen) error {
	var found program
	err := screen.step(ctx, "HAProxy", func(progress func(string)) (result string, err error) {
		if found, err = findHAProxy(ctx, progress); err != nil {
			return "", err
		}
		return found.version + ", " + found.path, nil
	})
	if err != nil {
		return err
	}
	return screen.step(ctx, "ACME server", func(func(string)) (string, error) {
		if err := w.launchHAProxy(found); err != nil {
			return "", err
		}
		dir, err := w.folder("pebble")
		if err != nil {
			return "", err
		}
		w.pebble, err = fixture.LaunchPebble(fixture.PebbleOptions{
			Dir: dir, HTTPPort: w.haproxy.HTTP.Number, AuthzRetryAfter: 3 * time.Second, OrderRetryAfter: 5 * time.Second,
		})
		if err != nil {
			return "", err
		}
		if err := w.haproxy.Set("SPOACME_CA", w.pebble.Directory()); err != nil {
			return "", err
		}
		return "Pebble, " + w.pebble.Directory(), w.haproxy.Restart()
	})
}

func (w *world) launchHAProxy(p program) error {
	dir, err := w.folder("haproxy")
	if err != nil {
		return err
	}
	w.haproxy, err = fixture.LaunchHAProxy(fixture.HAProxyOptions{
		Binary: p.path, Version: p.minor, Single: !p.tested(), Dir: dir,
	})
	return err
}

func (w *world) launchSidecar() error {
	dir, err := w.folder("spoacme")
	if err != nil {
		return err
	}
	w.sidecar, err = fixture.LaunchSidecar(fixture.SidecarOptions{
		Binary: w.binary, HAProxy: w.haproxy, Pebble: w.pebble, Dir: dir, Wait: true,
	})
	return err
}

// served makes a TLS handshake and checks the certificate against the ACME server's root, for every name.
func (w *world) served(ctx context.Context, names ...string) (fixture.Served, error) {
	served, err := fixture.Fetch(ctx, w.haproxy.HTTPS.Addr(), names[0])
	if err != nil {
		return served, err
	}
	roots, err := w.pebble.Roots(ctx)
	if err != nil {
		return served, err
	}
	for _, name := range names {
		if err := served.Verify(roots, name); err != nil {
			return served, err
		}
	}
	return served, nil
}

// answers counts the challenges that HAProxy answered with the sidecar's word.
func (w *world) answers() int {
	n := 0
	for line := range strings.Lines(w.haproxy.Log()) {
		if strings.Contains(line, "/.well-known/acme-challenge/") && strings.Contains(line, " 200 ") {
			n++
		}
	}
	return n
}

// logs returns the ends of the logs, for a demo that failed.
func (w *world) logs() string {
	var b strings.Builder
	if w.sidecar != nil {
		b.WriteString("\nspoacme's log ends with:\n" + lastLines(w.sidecar.Log(), 20))
	}
	if w.haproxy != nil {
		b.WriteString("\nHAProxy's log ends with:\n" + lastLines(w.haproxy.Log(), 10))
	}
	return b.String()
}

func lastLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n-1):], "")
}

// close ends everything, the sidecar first.
func (w *world) close() {
	if w.sidecar != nil {
		w.sidecar.Stop()
	}
	if w.pebble != nil {
		w.pebble.Stop()
	}
	if w.haproxy != nil {
		w.haproxy.Stop()
	}
	if err := os.RemoveAll(w.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "demo: remove %s: %v\n", w.dir, err)
	}
}
