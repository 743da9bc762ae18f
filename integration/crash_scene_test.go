package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
)

// scene is a HAProxy, an ACME server and a sidecar, with a hand on everything that goes between them.
type scene struct {
	t   *testing.T
	h   *fixture.HAProxy
	p   *fixture.Pebble
	ca  *fixture.Recorder
	tap *fixture.Tap // between sidecar and HAProxy
	s   *fixture.Sidecar
}

type sceneOptions struct {
	haproxy fixture.HAProxyOptions
	pebble  fixture.PebbleOptions
	sidecar fixture.SidecarOptions
	idle    bool // start no sidecar
	bare    bool // haproxy.cfg asks for no certificate, and HAProxy notices soon that a sidecar comes and goes
}

// quickChecks lets HAProxy notice soon that the sidecar is back, for tests that end it often.
func quickChecks(config string) string {
	return strings.Replace(config, "check inter 2s fastinter 200ms downinter 500ms", "check inter 200ms fastinter 50ms downinter 50ms", 1)
}

func newScene(t *testing.T, o sceneOptions) *scene {
	t.Helper()
	c := &scene{t: t, ca: &fixture.Recorder{}}
	if o.bare {
		o.haproxy.Edit = quickChecks
		o.haproxy.Settings = map[string]string{"SPOACME_CERTS": "", "SPOACME_CERT_shop": ""}
	}
	c.h = fixture.StartHAProxy(t, o.haproxy)
	c.tap = fixture.StartTap(t, c.h)
	o.pebble.HTTPPort = c.h.HTTP.Number
	o.pebble.Intercept = c.ca.Intercept
	c.p = fixture.StartPebble(t, o.pebble)
	if !o.idle {
		c.start(o.sidecar)
	}
	return c
}

// start starts the sidecar; its command line may hold more.
func (c *scene) start(o fixture.SidecarOptions) {
	c.t.Helper()
	o.HAProxy, o.Pebble = c.h, c.p
	o.Args = append([]string{"--socket", c.tap.Path, "--ca", c.p.Directory()}, o.Args...)
	s := fixture.StartSidecar(c.t, o)
	c.s = s
	c.t.Cleanup(func() {
		printed := squeeze(s.Log() + c.h.Log())
		for _, secret := range append(newLeaks(&world{haproxy: c.h, sidecar: s}).secrets(), squeeze("PRIVATE KEY")) {
			if strings.Contains(printed, secret) {
				c.t.Error("a private key is in a log")
			}
		}
	})
}

// must fails the test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a command of spoacme that must succeed.
func (c *scene) command(args ...string) string {
	c.t.Helper()
	out, err := c.s.Run(c.t.Context(), args...)
	if err != nil {
		c.t.Fatalf("spoacme %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// serves fails until HAProxy serves, for the name, the newest certificate that the CA signed for it.
func (c *scene) serves(name string) error {
	issued := c.ca.IssuedFor(c.p, name)
	if len(issued) == 0 {
		return fmt.Errorf("%s: nothing was issued", name)
	}
	return c.servesSerial(name, issued[len(issued)-1].Serial)
}

func (c *scene) servesSerial(name, serial string) error {
	served, err := fixture.Fetch(c.t.Context(), c.h.HTTPS.Addr(), name)
	if err != nil {
		return err
	}
	if served.Serial != serial {
		return fmt.Errorf("%s: served is %s instead of %s", name, served.Serial, serial)
	}
	return served.Leaf().VerifyHostname(name)
}

// await waits for a condition.
func (c *scene) await(limit time.Duration, holds func() error) {
	c.t.Helper()
	if err := fixture.Await(c.t.Context(), limit, holds); err != nil {
		c.t.Fatal(err)
	}
}

// issue obtains a certificate by command and returns when it is served.
func (c *scene) issue(name string, domains ...string) {
	c.t.Helper()
	c.command(append([]string{"issue", name}, domains...)...)
}

// certificate returns what the sidecar says of a certificate.
func (c *scene) certificate(name string) (status.CertificateView, error) {
	var v status.View
	if err := c.s.Status(&v); err != nil {
		return status.CertificateView{}, err
	}
	i := slices.IndexFunc(v.Certificates, func(c status.CertificateView) bool { return c.Name == name })
	if i < 0 {
		return status.CertificateView{}, fmt.Errorf("no certificate %s", name)
	}
	return v.Certificates[i], nil
}

// trouble waits until the sidecar says of a certificate what holds all the words, and returns it.
func (c *scene) trouble(name string, words ...string) string {
	c.t.Helper()
	var said string
	c.await(60*time.Second, func() error {
		v, err := c.certificate(name)
		if err != nil {
			return err
		}
		said = v.Error
		for _, w := range words {
			if !strings.Contains(said, w) {
				return fmt.Errorf("%s: the message has no %q: %q", name, w, said)
			}
		}
		return nil
	})
	c.t.Logf("%s: %s", name, said)
	return said
}

// settled fails while something of an order, of a transaction or of a write is left over.
func (c *scene) settled() error {
	answer, err := c.h.Command("show ssl cert")
	if err != nil {
		return err
	}
	if strings.Contains(answer, "# transaction") {
		return fmt.Errorf("a transaction is open:\n%s", answer)
	}
	dirs := []string{filepath.Join(c.crtDir(), ".spoacme"), filepath.Join(c.store(), "order"), filepath.Join(c.store(), "challenges")}
	for _, dir := range dirs {
		left, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, f := range left {
			if f.Name() != ".keep.json" {
				return fmt.Errorf("%s is left over", filepath.Join(dir, f.Name()))
			}
		}
	}
	return nil
}

func (c *scene) crtDir() string { return filepath.Dir(c.h.CrtList()) }

// store is the folder of the sidecar's store.
func (c *scene) store() string { return filepath.Join(filepath.Dir(c.h.ConfigDir()), "store") }

// onDisk fails until HAProxy would start with the newest certificate of a name: its file and its line are there.
func (c *scene) onDisk(domain string) error {
	name, _, _ := strings.Cut(domain, ".")
	path := filepath.Join(c.crtDir(), name+".pem")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b, err := store.ParseBundle(text)
	if err != nil {
		return err
	}
	issued := c.ca.IssuedFor(c.p, domain)
	if len(issued) == 0 || issued[len(issued)-1].Serial != b.Serial {
		return fmt.Errorf("%s holds %s, which is not the newest", path, b.Serial)
	}
	if list, err := os.ReadFile(c.h.CrtList()); err != nil || !strings.Contains(string(list), path+"\n") {
		return fmt.Errorf("the crt-list has no line for %s: %v", path, err)
	}
	return nil
}

// converges waits until a name is served and on disk and nothing is left over, and demands that the CA signed the given number of
// certificates for it and was asked for at most one order more.
func (c *scene) converges(name string, certificates int) {
	c.t.Helper()
	c.await(30*time.Second, func() error { return errors.Join(c.serves(name), c.onDisk(name), c.settled()) })
	issued, orders, finalized := c.ca.IssuedFor(c.p, name), c.ca.Orders(name), c.ca.Finalized(name)
	if len(issued) != certificates || len(finalized) != certificates || len(orders) > certificates+1 {
		c.t.Errorf("%s: %d certificates, %d orders of which %d were finalized; want %d certificates", name, len(issued), len(orders),
			len(finalized), certificates)
	}
}

// restartsTheSame reloads HAProxy and demands that it accepts its files and serves what it served.
func (c *scene) restartsTheSame(names ...string) {
	c.t.Helper()
	if _, err := c.h.Check(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	c.s.Pause()
	must(c.t, c.h.Reload(c.t.Context()))
	for _, name := range names {
		if err := c.serves(name); err != nil {
			c.t.Errorf("after a reload: %v", err)
		}
	}
}

// trap ends the sidecar, once, when somebody steps on it.
type trap struct {
	s      func() *fixture.Sidecar
	sprung chan struct{}
	once   sync.Once
}

func (c *scene) trap() *trap {
	return &trap{s: func() *fixture.Sidecar { return c.s }, sprung: make(chan struct{})}
}

// spring returns when the sidecar is dead, true for the first one.
func (t *trap) spring() (first bool) {
	t.once.Do(func() {
		first = true
		t.s().Kill9()
		close(t.sprung)
	})
	return first
}

func (t *trap) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	select {
	case <-t.sprung:
		return nil
	case <-ctx.Done():
		return errors.New("the sidecar never came to the point where it is to be killed")
	}
}
