package fleet

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// token makes a token with a policy of haproxy-conf/consul.
func (f *fleet) token(t *testing.T, role, node, agent string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixture.Root(), "haproxy-conf", "consul", role+".hcl"))
	if err != nil {
		t.Fatal(err)
	}
	rules := strings.NewReplacer("NODE\"", node+"\"", "NODE/\"", node+"/\"", "AGENT\"", agent+"\"").Replace(string(text))
	name := role + "-" + node
	f.put(t, "/v1/acl/policy", map[string]any{"Name": name, "Rules": rules}, nil)
	var made struct{ SecretID string }
	f.put(t, "/v1/acl/token", map[string]any{"Policies": []map[string]string{{"Name": name}}}, &made)
	return made.SecretID
}

func (f *fleet) put(t *testing.T, path string, body, answer any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	b, err = f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodPut, path, b)
	if err == nil && answer != nil {
		err = json.Unmarshal(b, answer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRoles: a node that leads and two edges, each with a token for its role, on a Consul that denies everything else.
func TestRoles(t *testing.T) {
	f := start(t, 3, fixture.ConsulOptions{Servers: 3, ACL: true}, settings{})
	edge := f.token(t, "edge", "lb2", "consul2")
	f.sidecar = []*fixture.Sidecar{
		f.node(t, 0, f.token(t, "node", "lb1", "consul1")),
		f.node(t, 1, edge, "SPOACME_ROLE=edge", "SPOACME_ISSUER_KEYS="),
		f.node(t, 2, f.token(t, "edge", "lb3", "consul3"), "SPOACME_ROLE=edge", "SPOACME_ISSUER_KEYS="),
	}
	f.served(t, 30*time.Second, "shop.example.com")
	if n := len(f.pebble.Orders()); n != 1 {
		t.Errorf("%d orders at the authority, want 1", n)
	}
	if out, err := f.sidecar[1].Run(t.Context(), "issue", "second", "second.example.com"); err != nil {
		t.Errorf("issue on an edge: %v\n%s", err, out)
	}
	f.served(t, 10*time.Second, "second.example.com")
	f.forbidden(t, edge)
	for i, s := range f.sidecar {
		if log := s.Log(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "ermission denied") {
			t.Errorf("lb%d:\n%s", i+1, log)
		}
	}
}

// forbidden demands that an edge's token can't do what only leaders and other nodes do.
func (f *fleet) forbidden(t *testing.T, token string) {
	t.Helper()
	as := *f.consul
	as.Token = token
	at := f.consul.Servers[1]
	for _, key := range []string{"issued/shop", "wanted/shop", "leader", "feed", "meta", "manifest/00", "challenges/x", "attempt/shop", "budget/x",
		"account/x", "order/x", "ack/lb1", "ack/lb3", "nodes/lb3/served", "nodes/lb1/offer/shop", "demand/lb1", "certs/shop"} {
		if b, err := as.Do(t.Context(), at, http.MethodPut, "/v1/kv/le/"+key, []byte("x")); err == nil {
			t.Errorf("an edge could write %s: %s", key, b)
		}
		if b, err := as.Do(t.Context(), at, http.MethodDelete, "/v1/kv/le/"+key, nil); err == nil {
			t.Errorf("an edge could delete %s: %s", key, b)
		}
	}
	for _, dir := range []string{"account/", "order/"} {
		b, err := as.Do(t.Context(), at, http.MethodGet, "/v1/kv/le/"+dir+"?keys", nil)
		if err == nil && strings.TrimSpace(string(b)) != "[]" {
			t.Errorf("an edge could read %s: %s", dir, b)
		}
	}
	if _, err := as.Do(t.Context(), at, http.MethodDelete, "/v1/kv/le?recurse", nil); err == nil {
		t.Error("an edge could delete everything")
	}
}
