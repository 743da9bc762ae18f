package fleet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/seal"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// damage makes a bad value of the good one of a certificate.
type damage struct {
	name string
	make func(good []byte) []byte
	says string // what is said about it
}

func (f *fleet) damages(t *testing.T) []damage {
	var meta struct{ Fleet string }
	p, err := f.get(t, "meta")
	must(t, err)
	must(t, json.Unmarshal(p.Value, &meta))
	ours := f.sealing(t).Sealer(meta.Fleet, func(string) bool { return true })
	other, err := seal.New()
	must(t, err)
	strange, err := seal.Load(other, other)
	must(t, err)
	theirs := strange.Sealer(meta.Fleet, func(string) bool { return true })
	fields := func(change func(map[string]any)) func([]byte) []byte {
		return func(good []byte) []byte {
			var m map[string]any
			must(t, json.Unmarshal(good, &m))
			change(m)
			b, err := json.Marshal(m)
			must(t, err)
			return b
		}
	}
	key := func(name string) []byte {
		bundle, err := fixture.SelfSigned(name)
		must(t, err)
		b, err := store.ParseBundle(bundle)
		must(t, err)
		return b.Key()
	}
	sealed := func(s store.Sealer, name string) func([]byte) []byte {
		return fields(func(m map[string]any) {
			text, err := s.Seal(store.KindIssued, name, key(name))
			must(t, err)
			m["private"] = text
		})
	}
	return []damage{
		{"text", func([]byte) []byte { return []byte("this is no record") }, "issued/text"},
		{"cut", func(good []byte) []byte { return good[:len(good)/2] }, "issued/cut"},
		{"newer", fields(func(m map[string]any) { m["v"], m["chain"] = 99, map[string]any{"pem": "elsewhere"} }), "issued/newer"},
		{"keyless", fields(func(m map[string]any) { delete(m, "private") }), "issued/keyless"},
		{"mixed", sealed(ours, "mixed"), "issued/mixed"},
		{"strange", sealed(theirs, "strange"), "issued/strange"},
		{"large", func([]byte) []byte { return bytes.Repeat([]byte("x"), 512<<10) }, "issued/large"},
	}
}

// TestBadValues puts what can't be used in place of certificates: each is skipped and named, the one that was good stays
// served, also by a sidecar and a HAProxy that start anew, and the others go on.
func TestBadValues(t *testing.T) {
	t.Parallel()
	names := []string{"text", "cut", "newer", "keyless", "mixed", "strange", "large", "good"}
	set := settings{"SPOACME_CERTS": strings.Join(names, ","), "SPOACME_CERT_shop": ""}
	for _, n := range names {
		set["SPOACME_CERT_"+n] = n + ".example.com"
	}
	f := start(t, 3, fixture.ConsulOptions{}, set)
	f.run(t)
	serials := map[string]string{}
	for _, n := range names {
		f.renewed(t, 30*time.Second, n+".example.com", 1)
		serials[n] = f.ca.IssuedFor(f.pebble, n+".example.com")[0].Serial
	}
	f.ready(t, 20*time.Second, 3)
	good := map[string][]byte{}
	damages := f.damages(t)
	for _, d := range damages {
		p, err := f.get(t, "issued/"+d.name)
		must(t, err)
		good[d.name] = p.Value
		f.write(t, "issued/"+d.name, d.make(p.Value))
	}
	if _, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodPut, "/v1/kv/le/issued/large", make([]byte, 513<<10)); err == nil {
		t.Error("Consul takes 513 KiB")
	}
	// The one that can be read is mended with what nodes have on disk.
	f.reported(t, damages, len(damages)-1)
	must(t, f.sidecar[1].Restart())
	node, _, err := f.lock(t)
	must(t, err)
	must(t, f.sidecar[node].Restart())
	must(t, f.haproxy[1].Reload(t.Context()))
	f.reported(t, damages, len(damages)-1)
	f.ask(t, 1, "good")
	f.renewed(t, 30*time.Second, "good.example.com", 2)
	for _, d := range damages {
		f.counted(t, d.name+".example.com", 1)
		must(t, f.serve(t, d.name+".example.com", serials[d.name]))
	}
	for name, value := range good {
		f.write(t, "issued/"+name, value)
	}
	f.ready(t, 30*time.Second, 3)
	for _, d := range damages {
		f.counted(t, d.name+".example.com", 1)
	}
}

// reported waits until every node says in its log what is wrong with each, and that it is not ready because of so many.
func (f *fleet) reported(t *testing.T, damages []damage, count int) {
	t.Helper()
	for i := range f.sidecar {
		f.unready(t, 20*time.Second, i, "store", fmt.Sprintf("%d records", count), "issued/")
		for _, d := range damages {
			await(t, 10*time.Second, fmt.Sprintf("log of lb%d", i+1), func() error {
				if !strings.Contains(f.sidecar[i].Log(), d.says) {
					return fmt.Errorf("nothing on %s", d.name)
				}
				return nil
			})
		}
	}
}

// TestNodes: a second node of the same name, a node that is gone, a token that is revoked, a prefix that is deleted.
func TestNodes(t *testing.T) {
	t.Parallel()
	f := start(t, 4, fixture.ConsulOptions{ACL: true}, settings{})
	tokens := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(tokens, []byte(f.token(t, "node", "lb2", "consul1")), 0o600))
	twin := f.haproxy[3]
	f.haproxy = f.haproxy[:3]
	f.asked(-1)
	f.sidecar = []*fixture.Sidecar{
		f.node(t, 0, f.token(t, "node", "lb1", "consul1")),
		f.node(t, 1, "", "CONSUL_HTTP_TOKEN_FILE="+tokens),
		f.node(t, 2, f.token(t, "node", "lb3", "consul1")),
	}
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 3)

	f.haproxy = append(f.haproxy, twin)
	second := f.node(t, 3, f.consul.Token, "SPOACME_NODE=lb1")
	f.haproxy = f.haproxy[:3]

	f.tokenRevoked(t, tokens)
	f.gone(t)
	must(t, second.Ended(60*time.Second))
	if log := second.Log(); !strings.Contains(log, "another sidecar has the same node name") || !strings.Contains(log, "give each its own SPOACME_NODE") {
		t.Errorf("the second lb1 says:\n%s", log)
	}
	f.prefixDeleted(t)
}

// tokenRevoked takes a node's token away and gives it another one.
func (f *fleet) tokenRevoked(t *testing.T, file string) {
	t.Helper()
	t.Log("a token is revoked")
	as := *f.consul
	as.Token = strings.TrimSpace(string(read(t, file)))
	b, err := as.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/acl/token/self", nil)
	must(t, err)
	var self struct{ AccessorID string }
	must(t, json.Unmarshal(b, &self))
	before := f.certificates(t, 1)
	_, err = f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodDelete, "/v1/acl/token/"+self.AccessorID, nil)
	must(t, err)
	f.unready(t, 40*time.Second, 1, "store", "forbidden", "haproxy-conf/consul")
	if after := f.certificates(t, 1); after != before {
		t.Errorf("HAProxy had\n%s and now\n%s", before, after)
	}
	must(t, os.WriteFile(file, []byte(f.token(t, "node", "lb2b", "consul1")), 0o600))
	begin := time.Now()
	f.ready(t, 60*time.Second, 3)
	t.Logf("with a new token in the fleet after %v", time.Since(begin).Round(time.Millisecond))
}

// certificates lists what HAProxy has, with fingerprints.
func (f *fleet) certificates(t *testing.T, node int) string {
	t.Helper()
	list, err := f.haproxy[node].Command("show ssl crt-list -n " + f.haproxy[node].CrtList())
	must(t, err)
	served, err := fixture.Fetch(t.Context(), f.haproxy[node].HTTPS.Addr(), shop)
	must(t, err)
	return list + served.Serial + string(read(t, f.haproxy[node].CrtList()))
}

// gone ends a node for good: one order waits for it, no other.
func (f *fleet) gone(t *testing.T) {
	t.Helper()
	t.Log("a node is gone for good")
	leader, _ := f.leader(t, 30*time.Second, "")
	lost := f.other(leader)
	asked := f.other(leader, lost)
	f.asked(lost)
	f.sidecar[lost].Kill9()
	for i, limit := range []time.Duration{12 * time.Second, 4 * time.Second} {
		begin := time.Now()
		f.ask(t, asked, "shop")
		f.renewedWithout(t, 30*time.Second, lost, 2+i)
		took := time.Since(begin)
		t.Logf("renewed after %v", took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("renewal %d without lb%d took %v", i+1, lost+1, took)
		}
	}
	must(t, f.sidecar[lost].Restart())
	f.asked(-1)
	f.renewed(t, 20*time.Second, shop, 3)
	f.ready(t, 60*time.Second, 3)
}

// prefixDeleted deletes everything that the fleet shares: what is served stays.
func (f *fleet) prefixDeleted(t *testing.T) {
	t.Helper()
	t.Log("the prefix is deleted")
	var before []string
	for i := range f.haproxy {
		before = append(before, f.certificates(t, i))
	}
	_, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodDelete, "/v1/kv/le?recurse", nil)
	must(t, err)
	hold(t, 6*time.Second, "the prefix is deleted", func() error {
		for i := range f.haproxy {
			if after := f.certificates(t, i); after != before[i] {
				return fmt.Errorf("lb%d had\n%s and now\n%s", i+1, before[i], after)
			}
		}
		return nil
	})
}
