// Package fleet tests several sidecars that share one Consul, each beside a HAProxy of its own, behind one name.
package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// fleet is a Consul, an authority that asks the HAProxies in turn, and the nodes.
type fleet struct {
	consul   *fixture.Consul
	pebble   *fixture.Pebble
	balancer *fixture.Balancer
	haproxy  []*fixture.HAProxy
	sidecar  []*fixture.Sidecar
	ca       *fixture.Recorder // between the sidecars and the authority
	keys     string            // folder of the keysets
}

// settings are the setenv lines of every node.
type settings map[string]string

// start starts everything but the sidecars.
func start(t *testing.T, nodes int, options fixture.ConsulOptions, set settings) *fleet {
	t.Helper()
	servers := max(options.Servers, 1)
	f := &fleet{consul: fixture.StartConsul(t, options), keys: t.TempDir(), ca: &fixture.Recorder{}}
	f.balancer = fixture.StartBalancer(t)
	f.pebble = fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: f.balancer.Port(), Intercept: f.ca.Intercept})
	var http []string
	for i := range nodes {
		all := settings{
			"SPOACME_CA":    f.pebble.Directory(),
			"SPOACME_STORE": "consul://" + f.consul.Servers[i%servers].HTTP.Addr() + "/le",
			"SPOACME_NODE":  fmt.Sprintf("lb%d", i+1),
		}
		for k, v := range set {
			all[k] = v
		}
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: "3.2", Settings: all})
		f.haproxy = append(f.haproxy, h)
		http = append(http, h.HTTP.Addr())
	}
	f.balancer.Set(http...)
	return f
}

// run starts a sidecar beside every HAProxy, with keysets of the fleet's own.
func (f *fleet) run(t *testing.T) {
	t.Helper()
	for i := range f.haproxy {
		f.sidecar = append(f.sidecar, f.node(t, i, f.consul.Token))
	}
}

// node starts the sidecar beside one HAProxy.
func (f *fleet) node(t *testing.T, i int, token string, env ...string) *fixture.Sidecar {
	t.Helper()
	options := fixture.SidecarOptions{HAProxy: f.haproxy[i], Pebble: f.pebble, Before: f.keygen(t), Env: append([]string{
		"SPOACME_FLEET_KEYS=" + filepath.Join(f.keys, "fleet.json"),
		"SPOACME_ISSUER_KEYS=" + filepath.Join(f.keys, "issuer.json"),
		"CONSUL_HTTP_TOKEN=" + token,
	}, env...)}
	return fixture.StartSidecar(t, options)
}

// keygen makes the keysets, once.
func (f *fleet) keygen(t *testing.T) func(*fixture.Sidecar) error {
	return func(s *fixture.Sidecar) error {
		if _, err := os.Stat(filepath.Join(f.keys, "fleet.json")); err == nil {
			return nil
		}
		out, err := s.Run(t.Context(), "keygen", "--dir", f.keys)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// served waits until every node serves the same certificate for a name.
func (f *fleet) served(t *testing.T, limit time.Duration, name string) {
	t.Helper()
	err := fixture.Await(t.Context(), limit, func() error {
		var serial string
		for i, h := range f.haproxy {
			s, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), name)
			if err != nil {
				return fmt.Errorf("lb%d: %w", i+1, err)
			}
			if got := s.Leaf().SerialNumber.Text(16); serial == "" {
				serial = got
			} else if got != serial {
				return fmt.Errorf("lb%d serves %s, another node %s", i+1, got, serial)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestColdStart: three nodes want the same twenty certificates of an empty Consul.
func TestColdStart(t *testing.T) {
	set := settings{}
	var names []string
	for i := range 20 {
		name := fmt.Sprintf("c%02d", i)
		names = append(names, name)
		set["SPOACME_CERT_"+name] = name + ".example.com"
	}
	set["SPOACME_CERTS"] = strings.Join(names, ",")
	set["SPOACME_CERT_shop"] = ""
	f := start(t, 3, fixture.ConsulOptions{}, set)
	f.run(t)
	begin := time.Now()
	for _, name := range names {
		f.served(t, 60*time.Second, name+".example.com")
	}
	t.Logf("served everywhere after %v", time.Since(begin))
	if n := len(f.pebble.Orders()); n != 20 {
		t.Errorf("%d orders at the authority, want 20", n)
	}
	if n := len(f.pebble.Issued()); n != 20 {
		t.Errorf("%d certificates issued, want 20", n)
	}
	if n := strings.Count(f.pebble.Log(), "accounts in memory"); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	for _, s := range f.sidecar {
		out, err := s.Run(t.Context(), "status")
		t.Logf("%v\n%s", err, out)
	}
}
