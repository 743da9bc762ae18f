package consul_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// token makes a token with one of the policies that the product ships.
func (f *fleet) token(t *testing.T, role, node string) string {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join(fixture.Root(), "haproxy-conf", "consul", role+".hcl"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(`"le/`, `"`+f.prefix+`/`, "NODE", node, "AGENT", "consul1").Replace(string(rules))
	put := func(path string, body any) []byte {
		b, err := json.Marshal(body)
		if err == nil {
			b, err = f.c.Do(t.Context(), f.c.Servers[0], http.MethodPut, path, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put("/v1/acl/policy", map[string]string{"Name": f.prefix + "-" + node, "Rules": text})
	var token struct{ SecretID string }
	b := put("/v1/acl/token", map[string]any{"Policies": []map[string]string{{"Name": f.prefix + "-" + node}}})
	if err := json.Unmarshal(b, &token); err != nil {
		t.Fatal(err)
	}
	return token.SecretID
}

func (f *fleet) as(t *testing.T, role consul.Role, node string) consul.Config {
	t.Helper()
	cfg, token := f.config(node, 0), f.token(t, string(role), node)
	cfg.Role = role
	cfg.Getenv = func(name string) string {
		if name == "CONSUL_HTTP_TOKEN" {
			return token
		}
		return ""
	}
	return cfg
}

// may makes a request with a node's own token, as whoever broke into it could.
func (f *fleet) may(t *testing.T, token, method, key string) bool {
	t.Helper()
	thief := &fixture.Consul{Servers: f.c.Servers, Token: token}
	_, err := thief.Do(t.Context(), f.c.Servers[0], method, "/v1/kv/"+f.prefix+"/"+key, []byte("x"))
	return err == nil
}

func TestRoles(t *testing.T) {
	for _, version := range []string{"", "1.8"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			testRoles(t, newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{Version: version, ACL: true})))
		})
	}
}

func testRoles(t *testing.T, f *fleet) {
	issuerConfig, edgeConfig := f.as(t, consul.RoleIssuer, "boss"), f.as(t, consul.RoleEdge, "edge1")
	issuer, edge, n := f.start(issuerConfig), f.start(edgeConfig), f.start(f.as(t, consul.RoleNode, "node1"))
	l := lead(t, issuer)
	for _, r := range []store.Record{certificate("shop", 1), challenges("shop", 1)} {
		commit(t, issuer, l, store.Put(r))
	}
	eventually(t, 10*time.Second, "both serve", func() bool {
		missing, err := issuer.Barrier(within(t, time.Second), 1)
		a := edge.cert("shop")
		b := n.cert("shop")
		nodes, listErr := edge.Nodes(t.Context())
		return err == nil && len(missing) == 0 && a != "" && b != "" && listErr == nil && len(nodes) == 3 && edge.token("shop") == 1
	})
	if _, err := edge.Lead(t.Context()); err == nil {
		t.Error("an edge leads")
	}
	edge.PublishDrift(map[string]consul.Drift{"shop": {Cause: "HAProxy is down"}})
	eventually(t, 5*time.Second, "the drift is seen", func() bool {
		nodes, err := issuer.Nodes(t.Context())
		at := slices.IndexFunc(nodes, func(n consul.Node) bool { return n.Name == "edge1" })
		return err == nil && at >= 0 && nodes[at].Drift["shop"].Cause == "HAProxy is down"
	})
	if err := edge.Offer(t.Context(), certificate("shop", 2)); err != nil {
		t.Error(err)
	}
	if offers, bad, err := issuer.Offers(t.Context(), "shop"); err != nil || len(bad) > 0 || len(offers) != 1 || offers[0].Node != "edge1" {
		t.Error(offers, bad, err)
	}
	if err := edge.Commit(t.Context(), nil, nil, []store.Op{store.Put(&store.Demand{Node: "edge1", Since: time.Now()})}); err != nil {
		t.Error("its own demand:", err)
	}
	err := edge.Commit(t.Context(), nil, nil, []store.Op{store.Put(&store.Demand{Node: "node1", Since: time.Now()})})
	if !errors.Is(err, store.ErrRefused) || !strings.Contains(err.Error(), "haproxy-conf/consul") {
		t.Error("another node's demand:", err)
	}
	for _, kind := range []store.Kind{store.KindAccount, store.KindOrder} {
		if list, err := edge.List(t.Context(), kind); err == nil {
			t.Errorf("an edge lists %s: %v", kind, list)
		}
	}

	token := edgeConfig.Getenv("CONSUL_HTTP_TOKEN")
	for _, key := range []string{"leader", "fence", "feed", "meta", "issued/shop", "wanted/shop", "order/shop", "account/main", "attempt/shop",
		"budget/ca", "challenges/shop", "manifest/00", "certs/shop", "ack/node1", "demand/node1", "nodes/node1/offer/shop"} {
		if f.may(t, token, http.MethodPut, key) {
			t.Errorf("an edge writes %s", key)
		}
	}
	for _, key := range []string{"order/.keep", "account/.keep"} {
		if f.may(t, token, http.MethodGet, key) {
			t.Errorf("an edge reads %s", key)
		}
	}
	if err := l.Context().Err(); err != nil {
		t.Error("the lease ended", err)
	}
}

// A revoked token stops writes and reads; nothing looks deleted, and a new token works without a restart.
// Of the processes that may lead all order from the same CAs and have the same keys, those with no HAProxy too.
func TestIssuersAgree(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	as := func(name, ca string) *consul.Store {
		cfg := f.config(name, 0)
		cfg.Role, cfg.CAs = consul.RoleIssuer, []string{ca}
		return f.start(cfg).Store
	}
	first := as("first", "https://ca.example/directory")
	l := lead(t, first)
	eventually(t, 5*time.Second, "the first one is known", func() bool {
		nodes, err := first.Nodes(t.Context())
		return err == nil && len(nodes) == 1 && nodes[0].Role == consul.RoleIssuer
	})
	if missing, err := first.Barrier(within(t, time.Second), 1); err != nil || len(missing) > 0 {
		t.Errorf("a barrier waits for who has no HAProxy: %q, %v", missing, err)
	}
	if live, err := first.Live(t.Context()); err != nil || len(live) > 0 {
		t.Errorf("live with a HAProxy: %q, %v", live, err)
	}
	l.Release()
	stranger := as("stranger", "https://staging.example/directory")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if m, err := stranger.Lead(ctx); err == nil {
		t.Error("who orders from another CA leads")
		m.Release()
	}
	lead(t, as("second", "https://ca.example/directory")).Release()
}

func TestRevokedToken(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{ACL: true}))
	leader := f.start(f.config("leader", 0))
	l := lead(t, leader)
	commit(t, leader, l, store.Put(certificate("shop", 1)))
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(f.token(t, "node", "a"))
	cfg := f.config("a", 0)
	cfg.Getenv = func(name string) string {
		if name == "CONSUL_HTTP_TOKEN_FILE" {
			return file
		}
		return ""
	}
	n := f.start(cfg)
	eventually(t, 5*time.Second, "reads", func() bool { return n.cert("shop") != "" })
	write("00000000-dead-dead-dead-000000000000")
	var err error
	eventually(t, 5*time.Second, "the token counts no more", func() bool {
		_, err = n.List(t.Context(), store.KindIssued)
		return err != nil
	})
	eventually(t, 5*time.Second, "a forbidden read is an error", func() bool { // what was read a moment ago is handed out for a second
		_, err := n.Get(t.Context(), issuedKey("shop"))
		return err != nil && !errors.Is(err, store.ErrAbsent)
	})
	t.Log(err)
	write(f.c.Token)
	eventually(t, 5*time.Second, "reads with the new token", func() bool {
		list, err := n.List(t.Context(), store.KindIssued)
		return err == nil && len(list.Entries) == 1
	})
}
