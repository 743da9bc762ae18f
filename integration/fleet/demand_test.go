package fleet

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestFlappingNode: one node asks for one name more than the others, comes and goes all the time, and changes its mind. That costs
// no order before it has stood still for ten minutes.
func TestFlappingNode(t *testing.T) {
	f := start(t, 3, fixture.ConsulOptions{}, settings{"SPOACME_CERT_shop": "shop.example.com"})
	f.run(t)
	f.served(t, 30*time.Second, "shop.example.com")
	for i := range 4 {
		domains := "shop.example.com"
		if i%2 == 0 {
			domains += ",extra.example.com"
		}
		if err := f.haproxy[2].Set("SPOACME_CERT_shop", domains); err != nil {
			t.Fatal(err)
		}
		if err := f.haproxy[2].Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.demands(t, "lb3", "extra.example.com", i%2 == 0)
		if i == 1 {
			f.sidecar[2].Kill9()
		} else {
			f.sidecar[2].Pause()
		}
		if err := f.sidecar[2].Restart(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.pebble.Orders()); n != 1 {
		t.Errorf("%d orders at the authority, want 1", n)
	}
	if err := f.haproxy[2].Set("SPOACME_CERT_shop", "shop.example.com,extra.example.com"); err != nil {
		t.Fatal(err)
	}
	if err := f.haproxy[2].Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.demands(t, "lb3", "extra.example.com", true)
	f.says(t, "the nodes ask for different names")
	// When all live nodes agree, nobody waits.
	for _, h := range f.haproxy[:2] {
		if err := h.Set("SPOACME_CERT_shop", "shop.example.com,extra.example.com"); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.served(t, 20*time.Second, "extra.example.com")
	if n := len(f.pebble.Orders()); n != 2 {
		t.Errorf("%d orders at the authority, want 2", n)
	}
}

// demands waits until the record of a node's demand has a name, or has it no more.
func (f *fleet) demands(t *testing.T, node, domain string, wanted bool) {
	t.Helper()
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/demand/"+node+"?raw", nil)
		if err == nil && strings.Contains(string(b), domain) != wanted {
			err = fmt.Errorf("demand of %s: %s", node, b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// says waits until status has a text.
func (f *fleet) says(t *testing.T, text string) {
	t.Helper()
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		out, err := f.sidecar[0].Run(t.Context(), "status")
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("status says:\n%s", out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForget: a node that is gone for good is asked for by nobody; what only it wanted is renewed no more, and stays served.
func TestForget(t *testing.T) {
	f := start(t, 2, fixture.ConsulOptions{}, settings{})
	if err := f.haproxy[1].Set("SPOACME_CERTS", "shop,own"); err != nil {
		t.Fatal(err)
	}
	if err := f.haproxy[1].Set("SPOACME_CERT_own", "own.example.com"); err != nil {
		t.Fatal(err)
	}
	if err := f.haproxy[1].Restart(); err != nil {
		t.Fatal(err)
	}
	f.run(t)
	f.served(t, 30*time.Second, "shop.example.com")
	f.served(t, 30*time.Second, "own.example.com")
	if out, err := f.sidecar[0].Run(t.Context(), "forget", "lb2"); err == nil || !strings.Contains(out, "it is live") {
		t.Errorf("a live node was forgotten: %v %s", err, out)
	}
	f.sidecar[1].Stop()
	if b := f.do(t, http.MethodGet, "/v1/kv/le/wanted/own?raw", nil); !strings.Contains(string(b), `"lb2"`) {
		t.Errorf("demand did not outlive the session: %s", b)
	}
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		out, err := f.sidecar[0].Run(t.Context(), "forget", "lb2")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = fixture.Await(t.Context(), 10*time.Second, func() error {
		b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/wanted/own?raw", nil)
		if err == nil && strings.Contains(string(b), `"lb2"`) {
			err = fmt.Errorf("still wanted: %s", b)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if s := f.serials(t, "own.example.com"); len(slices.Compact(s)) != 1 {
		t.Errorf("served %v", s)
	}
	if out, err := f.sidecar[0].Run(t.Context(), "status"); err != nil || strings.Contains(out, "lb2") {
		t.Errorf("%v\n%s", err, out)
	}
}
