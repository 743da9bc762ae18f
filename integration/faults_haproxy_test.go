package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestReloadBetweenSetAndCommit: a reload forgets the transaction. The unit is done again with the new process.
func TestReloadBetweenSetAndCommit(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		c := newScene(t, sceneOptions{bare: true, haproxy: fixture.HAProxyOptions{Version: version}})
		c.issue("shop", "shop.example.com")
		for _, command := range []string{"set ssl cert", "commit ssl cert"} {
			reloaded := false
			c.tap.Meddle(func(cmd string, pass func() []byte) []byte {
				answer := pass()
				if strings.Contains(cmd, command) && !reloaded {
					reloaded = true
					if err := c.h.Reload(t.Context()); err != nil {
						t.Error(err)
					}
				}
				return answer
			})
			c.command("renew", "shop")
			if err := errors.Join(c.serves("shop.example.com"), c.settled()); err != nil {
				t.Errorf("a reload after %s: %v", command, err)
			}
			c.tap.Meddle(nil)
		}
	})
}

// TestOldFiles: HAProxy is started with the files of yesterday, and gets those of today again. What it has already is not
// sent.
func TestOldFiles(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	c.issue("shop", "shop.example.com")
	path := filepath.Join(c.crtDir(), "shop.pem")
	old, err := os.ReadFile(path)
	must(t, err)
	c.command("renew", "shop")
	must(t, os.WriteFile(path, old, 0o640))
	must(t, c.h.Restart())
	c.await(20*time.Second, func() error { return c.serves("shop.example.com") })

	sent := len(c.tap.Commands("set ssl cert"))
	for range 3 {
		c.s.Pause()
		must(t, c.s.Restart())
		must(t, c.h.Reload(t.Context()))
		c.await(20*time.Second, func() error {
			v, err := c.certificate("shop")
			if err == nil && v.Nodes.Serving != 1 {
				err = fmt.Errorf("not compared yet: %+v", v)
			}
			return errors.Join(err, c.serves("shop.example.com"))
		})
	}
	if n := len(c.tap.Commands("set ssl cert")); n != sent {
		t.Errorf("%d swaps of what HAProxy has", n-sent)
	}
}

// TestSocketFaults breaks the stats socket under a sidecar that runs. It says so on /readyz, goes on answering
// challenges, and recovers.
func TestSocketFaults(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	c.issue("shop", "shop.example.com")
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for _, test := range []struct {
		name   string
		meddle func(string, func() []byte) []byte
		words  string
	}{
		{"never answers", func(string, func() []byte) []byte {
			select {
			case <-stop:
			case <-time.After(15 * time.Second):
			}
			return nil
		}, "it accepts but does not answer; is something else listening there, or is HAProxy overloaded?"},
		{"closes", func(string, func() []byte) []byte { return nil }, "HAProxy's answer ends in the middle"},
		{"half", func(_ string, pass func() []byte) []byte { a := pass(); return a[:len(a)/2] }, "HAProxy's answer ends in the middle"},
		{"another program", func(string, func() []byte) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n\n\n") }, "is the socket HAProxy's"},
		{"not admin", func(string, func() []byte) []byte { return []byte("\n[3]: Permission denied\n\n") }, "permission denied: write `level admin` at the end of the `stats socket` line and restart HAProxy"},
	} {
		c.tap.Meddle(test.meddle)
		var page string
		c.await(20*time.Second, func() (err error) {
			if page, err = c.s.Get("/readyz"); err == nil && !strings.Contains(page, test.words) {
				err = fmt.Errorf("%s: /readyz says\n%s", test.name, page)
			}
			return err
		})
		t.Logf("%s: %s", test.name, page)
		expect(t, page, "FAIL haproxy: ", test.words)
		c.tap.Meddle(nil)
		c.await(20*time.Second, func() error {
			page, err := c.s.Get("/readyz")
			if err == nil && !strings.HasPrefix(page, "ok haproxy\n") {
				err = fmt.Errorf("%s: it does not recover:\n%s", test.name, page)
			}
			return err
		})
	}
	// A warning before an answer, and answers byte by byte, are no faults.
	c.tap.Meddle(func(_ string, pass func() []byte) []byte {
		return append([]byte("\n[4]: something odd\n"), pass()...)
	})
	out, err := c.s.Run(t.Context(), "renew", "--timeout", "5s", "shop")
	t.Logf("with warnings before every answer: %v\n%s", err, out)
	c.tap.Meddle(nil)
	// Whether HAProxy reaches the agent could not be told among the warnings: the order waits for half a minute then.
	c.await(time.Minute, func() error { return errors.Join(c.serves("shop.example.com"), c.settled()) })
}

// TestBeforeHAProxy: the sidecar is started first, or with what will not do. It waits and says for what.
func TestBeforeHAProxy(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true, idle: true})
	dir := t.TempDir()
	launch := func(socket string) *fixture.Sidecar {
		s, err := fixture.LaunchSidecar(fixture.SidecarOptions{HAProxy: c.h, Pebble: c.p, Dir: dir,
			Args: []string{"--socket", socket, "--ca", c.p.Directory()}})
		must(t, err)
		t.Cleanup(s.Stop)
		return s
	}
	says := func(s *fixture.Sidecar, words ...string) {
		t.Helper()
		c.await(10*time.Second, func() error {
			for line := range strings.Lines(s.Log()) {
				all := true
				for _, w := range words {
					all = all && strings.Contains(line, w)
				}
				if all {
					t.Log(line)
					return nil
				}
			}
			return fmt.Errorf("the log has no line with %q:\n%s", words, s.Log())
		})
	}
	s := launch("/run/nowhere/admin.sock")
	says(s, "waiting for HAProxy", "no such socket; start HAProxy, or give the path of its `stats socket` line with --socket")
	s.Stop()

	must(t, c.h.Edit(func(text string) string { return strings.Replace(text, "level admin", "level operator", 1) }))
	must(t, c.h.Restart())
	s = launch(c.h.Socket())
	says(s, "write `level admin` at the end of the `stats socket` line and restart HAProxy")
	c.s = s
	must(t, c.h.Edit(func(text string) string { return strings.Replace(text, "level operator", "level admin", 1) }))
	must(t, c.h.Restart())
	c.await(10*time.Second, func() error { _, err := s.Get("/healthz"); return err })
	c.issue("shop", "shop.example.com")
	s.Stop()

	c.h.Pause()
	s = launch(c.h.Socket())
	says(s, "nobody listens; start HAProxy")
	c.s = s
	must(t, c.h.Restart())
	c.await(10*time.Second, func() error { _, err := s.Get("/healthz"); return err })
	c.command("renew", "shop")
	if err := c.serves("shop.example.com"); err != nil {
		t.Error(err)
	}
}

// TestNotDeployable: a certificate that HAProxy can't take is named with the remedy; others go on.
func TestNotDeployable(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("n%d.%s.example.com", i, strings.Repeat(strings.Repeat("a", 60)+".", 2)+"x"))
	}
	c.command(append([]string{"issue", "--no-wait", "big"}, names...)...)
	c.issue("small", "small.example.com")
	c.trouble("big", "write `tune.bufsize 32768` in the global section and restart HAProxy", "a reload takes it too")
	must(t, c.h.Reload(t.Context()))
	c.await(20*time.Second, func() error { return errors.Join(c.serves(names[0]), c.serves("small.example.com")) })
	c.s.Pause()

	// A crt-list that no bind line has loaded.
	list := filepath.Join(t.TempDir(), "crt-list")
	must(t, os.WriteFile(list, nil, 0o644))
	c.start(fixture.SidecarOptions{Env: []string{"SPOACME_CRT_LIST=" + list, "SPOACME_STORE=file://" + filepath.Join(t.TempDir(), "store")}})
	out, err := c.s.Run(t.Context(), "issue", "--timeout", "8s", "lost", "lost.example.com")
	if err == nil {
		t.Errorf("issue succeeds with a crt-list that HAProxy has not loaded:\n%s", out)
	}
	page, err := c.s.Get("/readyz")
	must(t, err)
	v, err := c.certificate("lost")
	must(t, err)
	t.Logf("issue:\n%s\nreadyz:\n%s\nstatus: %s", out, page, v.Error)
	if !strings.Contains(page+v.Error+out, "SPOACME_CRT_LIST") {
		t.Error("nothing names SPOACME_CRT_LIST")
	}
}
