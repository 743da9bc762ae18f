package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// identity is the files of one party of mutual TLS.
type identity struct{ cert, key string }

func newIdentity(t *testing.T) identity {
	t.Helper()
	dir := t.TempDir()
	return identity{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// replace writes another certificate over the last one, as tools that renew them do: one file after the other.
func (id identity) replace(t *testing.T, by *fixture.Authority) {
	t.Helper()
	p, err := by.Issue(time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1")
	must(t, err)
	for path, text := range map[string][]byte{id.cert: p.Chain, id.key: p.Key} {
		must(t, errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)))
	}
}

func (id identity) env(ca string) []string {
	return []string{"CONSUL_HTTP_SSL=true", "CONSUL_CACERT=" + ca, "CONSUL_CLIENT_CERT=" + id.cert, "CONSUL_CLIENT_KEY=" + id.key}
}

// TestMutualTLS: a Consul that speaks HTTPS only, demands a certificate of every client, and denies what no policy grants. A
// client without a certificate is told so. Then the company changes its authority, and no sidecar is restarted for it.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	before, err := fixture.NewAuthority("before")
	must(t, err)
	after, err := fixture.NewAuthority("after")
	must(t, err)
	dir := t.TempDir()
	trusted, both := filepath.Join(dir, "trusted.pem"), filepath.Join(dir, "both.pem")
	must(t, errors.Join(os.WriteFile(trusted, before.PEM(), 0o600), os.WriteFile(both, append(before.PEM(), after.PEM()...), 0o600)))
	server, one, two := newIdentity(t), newIdentity(t), newIdentity(t)
	for _, id := range []identity{server, one, two} {
		id.replace(t, before)
	}
	f := start(t, 2, fixture.ConsulOptions{ACL: true, TLS: &fixture.ConsulTLS{CA: trusted, Cert: server.cert, Key: server.key}}, settings{})
	second := f.token(t, "node", "lb2", "consul1")

	t.Log("no HTTPS, another authority, no certificate: each is said with the variable that mends it")
	f.sidecar = []*fixture.Sidecar{nil, nil}
	for words, env := range map[string][]string{
		"CONSUL_HTTP_SSL=true": nil,
		"CONSUL_CACERT":        {"CONSUL_HTTP_SSL=true", "CONSUL_CLIENT_CERT=" + two.cert, "CONSUL_CLIENT_KEY=" + two.key},
		"CONSUL_CLIENT_CERT":   {"CONSUL_HTTP_SSL=true", "CONSUL_CACERT=" + both},
	} {
		f.sidecar[1] = f.node(t, 1, second, env...)
		f.unready(t, 20*time.Second, 1, "FAIL store", words)
		f.sidecar[1].Stop()
	}

	f.sidecar[0] = f.node(t, 0, f.token(t, "node", "lb1", "consul1"), one.env(both)...)
	f.sidecar[1] = f.node(t, 1, second, two.env(both)...)
	f.renewed(t, 40*time.Second, shop, 1)
	f.ready(t, 20*time.Second, 2)
	f.clients(t, shop, 20*time.Millisecond)

	t.Log("a central tool puts its certificate there, over HTTPS with a client certificate")
	old, serial := newCentral(t).issue(t, "old.example.com", time.Now().Add(-time.Hour), time.Now().Add(500*time.Hour))
	t.Logf("served by all after %v", f.upload(t, "old", old, "old.example.com", serial))

	t.Log("the authority changes: the first node's certificate is replaced before, the second one's after")
	one.replace(t, after)
	server.replace(t, after)
	must(t, os.WriteFile(trusted, after.PEM(), 0o600))
	f.consul.Servers[0].Kill()
	must(t, f.consul.Servers[0].Start())
	begin := time.Now()
	f.unready(t, 30*time.Second, 1, "FAIL store", "CONSUL_CLIENT_CERT")
	f.leads(t, 60*time.Second, 1)
	must(t, fixture.Await(t.Context(), 30*time.Second, func() error {
		page, err := f.sidecar[0].Get("/readyz")
		if err == nil && !strings.HasSuffix(page, "\nready\n") {
			err = errors.New(page)
		}
		return err
	}))
	t.Logf("with the replaced certificate: ready and leading after %v", time.Since(begin).Round(time.Millisecond))
	two.replace(t, after)
	begin = time.Now()
	f.ready(t, 60*time.Second, 2)
	t.Logf("the other one: ready %v after its certificate was replaced", time.Since(begin).Round(time.Millisecond))
	f.ask(t, 1, "shop")
	f.renewed(t, 40*time.Second, shop, 2)
}
