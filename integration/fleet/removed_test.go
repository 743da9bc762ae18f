package fleet

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

// TestRemovedWhileDown: a certificate is removed while a node's sidecar is down. The node takes it out of its HAProxy when it is
// back, does not bring it back into the store, and when the name is asked for again there is a new certificate.
func TestRemovedWhileDown(t *testing.T) {
	t.Parallel()
	f := start(t, 2, fixture.ConsulOptions{}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	const extra = "extra.example.com"
	if out, err := f.sidecar[0].Run(t.Context(), "issue", "extra", extra); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.renewed(t, 30*time.Second, extra, 1)
	first := f.ca.IssuedFor(f.pebble, extra)[0].Serial
	f.sidecar[1].Kill9()
	if out, err := f.sidecar[0].Run(t.Context(), "remove", "extra"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if s, err := fixture.Fetch(t.Context(), f.haproxy[1].HTTPS.Addr(), extra); err != nil || s.Serial != first {
		t.Errorf("the HAProxy whose sidecar is down does not serve it any more: %v %v", s.Serial, err)
	}
	must(t, f.sidecar[1].Restart())
	await(t, 20*time.Second, "it is removed there, too", func() error {
		s, err := fixture.Fetch(t.Context(), f.haproxy[1].HTTPS.Addr(), extra)
		if err == nil && s.Serial == first {
			return errors.New("it is still served")
		}
		return nil // an error is as good: there is no other certificate
	})
	if p, err := f.get(t, "issued/extra"); err != nil || p != nil {
		t.Errorf("it is back in the store: %v", err)
	}

	await(t, 10*time.Second, "what was carried out is remembered", func() error {
		text, err := os.ReadFile(filepath.Join(f.sidecar[1].State(), "removals"))
		if err != nil || len(strings.Fields(string(text))) != 1 {
			return fmt.Errorf("%q %v", text, err)
		}
		return nil
	})
	if out, err := f.sidecar[1].Run(t.Context(), "issue", "extra", extra); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.renewed(t, 30*time.Second, extra, 2)
	must(t, f.sidecar[1].Restart())
	f.ready(t, 20*time.Second, 2)
	must(t, f.serve(t, extra, f.ca.IssuedFor(f.pebble, extra)[1].Serial))
}
