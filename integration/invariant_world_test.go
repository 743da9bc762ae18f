package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// A world is one HAProxy, one sidecar and one authority, with clients at work, and what must hold beside every scenario:
//
//   - no TLS client fails once a certificate is served, and none is ever given an older certificate than was served before;
//   - HAProxy answers every token before the authority is asked to look;
//   - orders at the authority never overlap for a name;
//   - nothing that is printed holds a private key;
//   - in the end HAProxy serves what is stored, and would start with what is on disk.
type world struct {
	t       *testing.T
	haproxy *fixture.HAProxy
	pebble  *fixture.Pebble
	sidecar *fixture.Sidecar // nil until runSidecar, with worldOptions.late

	authority *authority
	clients   *clients
	leaks     *leaks
	opts      worldOptions
	states    map[string]status.State // what a certificate must end as, when it is not ok
}

// worldOptions says what differs from haproxy-conf/haproxy.cfg with an authority that is quick.
type worldOptions struct {
	haproxy fixture.HAProxyOptions
	pebble  fixture.PebbleOptions
	env     []string // of the sidecar
	late    bool     // the scenario starts the sidecar
}

func startWorld(t *testing.T, opts worldOptions) *world {
	t.Helper()
	h := fixture.StartHAProxy(t, opts.haproxy)
	w := &world{t: t, haproxy: h, opts: opts, states: map[string]status.State{}}
	w.authority = newAuthority(h.HTTP.Addr())
	opts.pebble.HTTPPort = h.HTTP.Number
	opts.pebble.Intercept = w.authority.intercept
	w.pebble = fixture.StartPebble(t, opts.pebble)
	w.clients = newClients(h.HTTPS.Addr(), w.issuedAs())
	w.leaks = newLeaks(w)
	if err := h.Set("SPOACME_CA", w.pebble.Directory()); err != nil {
		t.Fatal(err)
	}
	if err := h.Restart(); err != nil {
		t.Fatal(err)
	}
	if !opts.late {
		w.runSidecar()
	}
	return w
}

// runSidecar starts the sidecar; what must hold is looked at before it ends.
func (w *world) runSidecar() {
	w.t.Helper()
	w.sidecar = fixture.StartSidecar(w.t, fixture.SidecarOptions{HAProxy: w.haproxy, Pebble: w.pebble, Env: w.opts.env})
	w.t.Cleanup(w.finish)
}

// launchSidecar is runSidecar for one that can't answer yet.
func (w *world) launchSidecar() {
	w.t.Helper()
	var err error
	opts := fixture.SidecarOptions{HAProxy: w.haproxy, Pebble: w.pebble, Env: w.opts.env, Dir: w.t.TempDir()}
	if w.sidecar, err = fixture.LaunchSidecar(opts); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		w.sidecar.Stop()
		if w.t.Failed() {
			w.t.Logf("log of spoacme:\n%s", w.sidecar.Log())
		}
	})
	w.t.Cleanup(w.finish)
}

// finish checks all that must hold.
func (w *world) finish() {
	for _, err := range w.clients.stop() {
		w.t.Error(err)
	}
	if w.t.Failed() {
		return // the world may be anything
	}
	if err := fixture.Await(context.Background(), settleTimeout, w.settled); err != nil {
		w.t.Errorf("the world does not come to rest: %v", err)
	}
	for _, err := range append(w.authority.broken(), w.leaks.found()...) {
		w.t.Error(err)
	}
}

// settleTimeout is how long everything may take to be as it should. It is long because a busy machine is no failure.
const settleTimeout = 20 * time.Second

// issuedAs returns the function that tells the place of a certificate among all that the authority issued, 0 for one
// that is not the authority's.
func (w *world) issuedAs() func(serial string) int {
	places := make(map[string]int)
	return func(serial string) int {
		if places[serial] == 0 {
			for i, c := range w.pebble.Issued() {
				places[c.Serial] = i + 1
			}
		}
		return places[serial]
	}
}

// run runs a command of spoacme that must succeed.
func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	if err != nil {
		w.t.Fatalf("spoacme %v: %v\n%s", args, err, out)
	}
	return out
}

// try runs a command of spoacme.
func (w *world) try(args ...string) (string, error) {
	out, err := w.sidecar.Run(w.t.Context(), args...)
	w.leaks.add(fmt.Sprintf("spoacme %v", args), out)
	return out, err
}

// served waits until a certificate of the authority is served for the name, lets clients work on it from then on, and
// returns its serial.
func (w *world) served(name string) string {
	w.t.Helper()
	return w.servedAfter(name, "")
}

// servedAfter is served, for another certificate than the one with that serial.
func (w *world) servedAfter(name, old string) string {
	w.t.Helper()
	var serial string
	err := fixture.Await(w.t.Context(), settleTimeout, func() error {
		roots, err := w.pebble.Roots(w.t.Context())
		if err != nil {
			return err
		}
		s, err := fixture.Fetch(w.t.Context(), w.haproxy.HTTPS.Addr(), name)
		if err != nil {
			return err
		}
		if s.Serial == old {
			return fmt.Errorf("still %s is served", old)
		}
		serial = s.Serial
		return s.Verify(roots, name)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.clients.follow(name)
	return serial
}

// certificate returns a certificate's view, once it is in the state.
func (w *world) certificate(name string, state status.State) status.CertificateView {
	w.t.Helper()
	var c status.CertificateView
	err := fixture.Await(w.t.Context(), settleTimeout, func() error {
		v, err := w.view()
		if err != nil {
			return err
		}
		var ok bool
		if c, ok = v.Certificate(name); !ok {
			return fmt.Errorf("no certificate %s", name)
		}
		if c.State != state {
			return fmt.Errorf("%s is %s (%s), not %s", name, c.State, c.Error, state)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) view() (status.View, error) {
	var v status.View
	err := w.sidecar.Status(&v)
	return v, err
}

// set changes settings in haproxy.cfg: name, value, name, value; an empty value deletes the line.
func (w *world) set(settings ...string) {
	w.t.Helper()
	for i := 0; i < len(settings); i += 2 {
		name, value := settings[i], settings[i+1]
		err := w.haproxy.Set(name, value)
		if value == "" {
			err = w.haproxy.Unset(name)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// reload reloads HAProxy, which breaks connections by itself, while clients look only at which certificate they get.
func (w *world) reload() {
	w.t.Helper()
	w.interrupt(func() error { return w.haproxy.Reload(w.t.Context()) })
}

// restart ends HAProxy and starts it.
func (w *world) restart() {
	w.t.Helper()
	w.interrupt(w.haproxy.Restart)
}

func (w *world) interrupt(what func() error) {
	w.t.Helper()
	var err error
	w.clients.interrupt(func() { err = what() })
	if err != nil {
		w.t.Fatal(err)
	}
}

// pem returns the path of a certificate's file.
func (w *world) pem(name string) string {
	return filepath.Join(filepath.Dir(w.haproxy.CrtList()), name+".pem")
}

// samePID fails the test when HAProxy is not the process that it was.
func (w *world) samePID(was int) {
	w.t.Helper()
	if now := pid(w.t, w.haproxy); now != was {
		w.t.Errorf("HAProxy was process %d and is %d", was, now)
	}
}
