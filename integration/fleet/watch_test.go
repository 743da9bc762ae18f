package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store/seal"
)

const shop = "shop.example.com"

// must fails the test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits for a condition.
func await(t *testing.T, limit time.Duration, what string, holds func() error) {
	t.Helper()
	if err := fixture.Await(t.Context(), limit, holds); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// hold demands that something stays as it is for a time.
func hold(t *testing.T, d time.Duration, what string, holds func() error) {
	t.Helper()
	end := time.Now().Add(d)
	await(t, 2*d+10*time.Second, what, func() error {
		if err := holds(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if left := time.Until(end); left > 0 {
			return fmt.Errorf("it holds, %v are left", left)
		}
		return nil
	})
}

// clients puts TLS clients to work on every HAProxy until the test ends, each with a pause between its requests. None may ever
// fail, and none may be given a certificate that another one had replaced.
func (f *fleet) clients(t *testing.T, name string, pause time.Duration) []*fixture.Load {
	t.Helper()
	var loads []*fixture.Load
	for i, h := range f.haproxy {
		load := fixture.StartLoad(fixture.LoadOptions{Addr: h.HTTPS.Addr(), Name: name, New: 1, Pause: pause})
		loads = append(loads, load)
		t.Cleanup(func() {
			r := load.Stop()
			wellServed(t, fmt.Sprintf("%s on lb%d", name, i+1), r)
			for n, s := range r.Serials[min(1, len(r.Serials)):] {
				if before := r.Serials[n]; before.Last.After(s.First) {
					t.Errorf("%s on lb%d: certificate %s came back after %s", name, i+1, before.Serial, s.Serial)
				}
			}
		})
	}
	return loads
}

// wellServed demands that there were clients and that none of them failed.
func wellServed(t *testing.T, where string, r fixture.LoadReport) {
	t.Helper()
	if r.Failed > 0 || r.Handshakes == 0 {
		t.Errorf("%s: %d of %d connections failed: %v", where, r.Failed, r.Handshakes, errors.Join(r.Errors...))
	}
}

// kv is a key of the fleet's as Consul has it.
type kv struct {
	Value       []byte
	Session     string
	ModifyIndex uint64
}

// get reads a key below the fleet's prefix from any server that answers; nil when it is absent.
func (f *fleet) get(t *testing.T, key string) (*kv, error) {
	t.Helper()
	var errs []error
	for _, s := range f.consul.Servers {
		b, err := f.consul.Do(t.Context(), s, http.MethodGet, "/v1/kv/le/"+key, nil)
		if err != nil && strings.Contains(err.Error(), "404") {
			return nil, nil
		}
		var pairs []kv
		if err == nil {
			err = json.Unmarshal(b, &pairs)
		}
		if err == nil {
			return &pairs[0], nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// write puts a value below the fleet's prefix, as another tool would.
func (f *fleet) write(t *testing.T, key string, value []byte) {
	t.Helper()
	_, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodPut, "/v1/kv/le/"+key, value)
	must(t, err)
}

// lock returns which node leads, by index, and the session that holds the lock.
func (f *fleet) lock(t *testing.T) (node int, session string, err error) {
	t.Helper()
	p, err := f.get(t, "leader")
	if err != nil {
		return 0, "", err
	}
	if p == nil || p.Session == "" {
		return 0, "", errors.New("nobody leads")
	}
	var r struct{ Node string }
	if err := json.Unmarshal(p.Value, &r); err != nil {
		return 0, "", err
	}
	_, err = fmt.Sscanf(r.Node, "lb%d", &node)
	return node - 1, p.Session, err
}

// leader waits for a leader other than the one of a session.
func (f *fleet) leader(t *testing.T, limit time.Duration, not string) (node int, session string) {
	t.Helper()
	await(t, limit, "a leader", func() error {
		var err error
		if node, session, err = f.lock(t); err == nil && session == not {
			err = errors.New("the same one still leads")
		}
		return err
	})
	return node, session
}

// other returns a node that is none of the given ones.
func (f *fleet) other(not ...int) int {
	for i := range f.sidecar {
		taken := false
		for _, n := range not {
			taken = taken || n == i
		}
		if !taken {
			return i
		}
	}
	panic("there is none")
}

// asked lets the authority ask all HAProxies but one.
func (f *fleet) asked(not int) {
	var addrs []string
	for i, h := range f.haproxy {
		if i != not {
			addrs = append(addrs, h.HTTP.Addr())
		}
	}
	f.balancer.Set(addrs...)
}

// ask asks a node for a renewal and does not wait for it.
func (f *fleet) ask(t *testing.T, node int, certificate string) {
	t.Helper()
	out, err := f.sidecar[node].Run(t.Context(), "renew", "--no-wait", certificate)
	if err != nil {
		t.Fatalf("renew %s on lb%d: %v\n%s", certificate, node+1, err, out)
	}
}

// renewed waits until the authority has signed so many certificates for a name and every node serves the last one.
func (f *fleet) renewed(t *testing.T, limit time.Duration, name string, certificates int) {
	t.Helper()
	await(t, limit, name, func() error {
		issued := f.ca.IssuedFor(f.pebble, name)
		if len(issued) < certificates {
			return fmt.Errorf("%d certificates, want %d", len(issued), certificates)
		}
		return f.serve(t, name, issued[len(issued)-1].Serial)
	})
	f.counted(t, name, certificates)
}

// serve fails until every node serves a certificate.
func (f *fleet) serve(t *testing.T, name, serial string) error {
	for i, h := range f.haproxy {
		s, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), name)
		if err != nil {
			return fmt.Errorf("lb%d: %w", i+1, err)
		}
		if s.Serial != serial {
			return fmt.Errorf("lb%d serves %s instead of %s", i+1, s.Serial, serial)
		}
	}
	return nil
}

// counted demands that there are so many certificates and finalized orders for a name, and no further order.
func (f *fleet) counted(t *testing.T, name string, certificates int) {
	t.Helper()
	issued, orders, finalized := f.ca.IssuedFor(f.pebble, name), f.ca.Orders(name), f.ca.Finalized(name)
	if len(issued) != certificates || len(finalized) != certificates || len(orders) != certificates {
		t.Errorf("%s: %d certificates and %d orders of which %d were finalized, want %d", name, len(issued), len(orders), len(finalized), certificates)
	}
}

// ready waits until all nodes are ready and see so many live nodes.
func (f *fleet) ready(t *testing.T, limit time.Duration, live int) {
	t.Helper()
	await(t, limit, "the fleet", func() error {
		for i, s := range f.sidecar {
			page, err := s.Get("/readyz")
			if err != nil {
				return err
			}
			if v, err := f.view(t, i); err != nil || !v.Ready() {
				return fmt.Errorf("lb%d: %w\n%s", i+1, err, page)
			} else if n := alive(v); n != live {
				return fmt.Errorf("lb%d sees %d live nodes, want %d", i+1, n, live)
			}
		}
		return nil
	})
}

func alive(v status.View) (n int) {
	for _, node := range v.Fleet {
		if node.Live {
			n++
		}
	}
	return n
}

// view reads what a node says of itself and the fleet, as `spoacme status` does.
func (f *fleet) view(t *testing.T, node int) (v status.View, err error) {
	out, err := f.sidecar[node].Run(t.Context(), "status", "--json")
	if e := json.Unmarshal([]byte(out), &v); e != nil {
		return v, fmt.Errorf("%w: %w: %s", e, err, out)
	}
	return v, nil
}

// unready waits until a node is alive and says of its store what holds the words.
func (f *fleet) unready(t *testing.T, limit time.Duration, node int, words ...string) {
	t.Helper()
	await(t, limit, fmt.Sprintf("readyz of lb%d", node+1), func() error {
		if _, err := f.sidecar[node].Get("/healthz"); err != nil {
			return err
		}
		page, err := f.sidecar[node].Get("/readyz")
		for _, w := range words {
			if err == nil && !strings.Contains(page, w) {
				err = fmt.Errorf("no %q in\n%s", w, page)
			}
		}
		return err
	})
}

// sealing returns the fleet's own keysets.
func (f *fleet) sealing(t *testing.T) *seal.Keys {
	t.Helper()
	keys, err := seal.Load(read(t, filepath.Join(f.keys, "fleet.json")), read(t, filepath.Join(f.keys, "issuer.json")))
	must(t, err)
	return keys
}
