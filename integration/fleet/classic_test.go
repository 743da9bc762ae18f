package fleet

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
)

// central is an authority whose certificates some central tool puts into Consul.
type central struct{ *fixture.Authority }

func newCentral(t *testing.T) central {
	t.Helper()
	a, err := fixture.NewAuthority("central")
	must(t, err)
	return central{a}
}

// issue returns chain and key in PEM, the chain first as certbot's users concatenate them, and the serial number.
func (c central) issue(t *testing.T, name string, from, until time.Time) (text []byte, serial string) {
	t.Helper()
	p, err := c.Issue(from, until, name)
	must(t, err)
	return append(p.Chain, p.Key...), p.Serial
}

// upload is `curl --upload-file`, and returns how long it took until every HAProxy served it.
func (f *fleet) upload(t *testing.T, key string, value []byte, name, serial string) time.Duration {
	t.Helper()
	begin := time.Now()
	f.write(t, "certs/"+key, value)
	await(t, 20*time.Second, name, func() error { return f.serve(t, name, serial) })
	return time.Since(begin)
}

// TestClassic keeps the pipeline of a central tool alive: what it puts under certs/ is deployed to every HAProxy and never
// renewed; with SPOACME_SEAL=plain our own are there for its watch handlers.
func TestClassic(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{}, settings{"SPOACME_SEAL": "plain"})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.ready(t, 20*time.Second, 3)
	f.readable(t)

	c, now := newCentral(t), time.Now()
	plain, first := c.issue(t, "old.example.com", now.Add(-48*time.Hour), now.Add(500*time.Hour))
	coded, second := c.issue(t, "coded.example.com", now.Add(-time.Hour), now.Add(500*time.Hour))
	bare, third := c.issue(t, "bare.example.com", now.Add(-time.Hour), now.Add(500*time.Hour))
	t.Logf("plain, .pem: served by all after %v", f.upload(t, "old.pem", plain, "old.example.com", first))
	t.Logf("base64, .crt: served by all after %v", f.upload(t, "coded.crt", []byte(base64.StdEncoding.EncodeToString(coded)+"\n"), "coded.example.com", second))
	t.Logf("plain, no ending: served by all after %v", f.upload(t, "bare", bare, "bare.example.com", third))
	for i := range f.sidecar {
		for _, name := range []string{"old", "coded", "bare"} {
			await(t, 10*time.Second, "status", func() error { return f.foreign(t, i, name) })
		}
	}
	f.clients(t, "old.example.com", 20*time.Millisecond)
	newer, fourth := c.issue(t, "old.example.com", now.Add(-time.Hour), now.Add(700*time.Hour))
	t.Logf("a newer one: served by all after %v", f.upload(t, "old.pem", newer, "old.example.com", fourth))

	expired, _ := c.issue(t, "old.example.com", now.Add(-900*time.Hour), now.Add(-time.Hour))
	for what, value := range map[string][]byte{
		"the older one": plain, "an expired one": expired, "half of one": newer[:len(newer)/2], "text": []byte("no certificate"),
		"no key": newer[:bytes.Index(newer, []byte("-----BEGIN PRIVATE"))],
	} {
		f.write(t, "certs/old.pem", value)
		f.stays(t, what, "old.example.com", fourth)
	}
	for _, key := range []string{"old.pem", "coded.crt", "bare"} {
		_, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodDelete, "/v1/kv/le/certs/"+key, nil)
		must(t, err)
	}
	f.stays(t, "deleted", "old.example.com", fourth)
	must(t, f.serve(t, "coded.example.com", second))
	f.sidecar[2].Pause()
	must(t, f.haproxy[2].Reload(t.Context()))
	must(t, f.sidecar[2].Restart())
	f.stays(t, "deleted, after a restart", "bare.example.com", third)
	if n := len(f.pebble.Orders()); n != 1 {
		t.Errorf("%d orders, want none for certificates of others", n-1)
	}
}

// foreign fails until a node shows a certificate as another tool's that it serves.
func (f *fleet) foreign(t *testing.T, node int, name string) error {
	v, err := f.view(t, node)
	if err != nil {
		return err
	}
	c, ok := v.Certificate(name)
	if !ok || c.State != status.Foreign || c.Served == nil || c.Stored == nil || c.Served.Fingerprint != c.Stored.Fingerprint || !c.RenewAt.IsZero() {
		return fmt.Errorf("lb%d says of %s: %+v", node+1, name, c)
	}
	return nil
}

// stays demands that all nodes go on serving a certificate for longer than any change takes to arrive.
func (f *fleet) stays(t *testing.T, what, name, serial string) {
	t.Helper()
	hold(t, 2500*time.Millisecond, what, func() error { return f.serve(t, name, serial) })
}

// readable demands that our own certificate is there in the form that other tools' handlers read.
func (f *fleet) readable(t *testing.T) {
	t.Helper()
	p, err := f.get(t, "certs/shop")
	must(t, err)
	if p == nil {
		t.Fatal("there is no certs/shop")
	}
	text, err := base64.StdEncoding.DecodeString(string(p.Value))
	must(t, err)
	b, err := store.ParseBundle(text)
	must(t, err)
	if serial := f.ca.IssuedFor(f.pebble, shop)[0].Serial; b.Serial != serial {
		t.Errorf("certs/shop holds %s instead of %s", b.Serial, serial)
	}
	if !strings.HasPrefix(string(text), "-----BEGIN CERTIFICATE") {
		t.Error("the chain does not come first")
	}
}
