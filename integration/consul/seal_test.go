package consul_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/seal"
	"github.com/spoacme/spoacme/store/storetest"
)

func load(t *testing.T, fleet, issuer []byte) *seal.Keys {
	t.Helper()
	k, err := seal.Load(fleet, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func fresh(t *testing.T) []byte {
	t.Helper()
	k, err := seal.New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealedInConsul(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	n := f.start(f.config("a", 0))
	l := lead(t, n)
	var ops []store.Op
	for _, r := range storetest.Records("shop") {
		ops = append(ops, store.Put(r))
	}
	commit(t, n, l, ops...)
	raw, err := f.c.Do(t.Context(), f.c.Servers[0], "GET", "/v1/kv/"+f.prefix+"/?recurse=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, shift := range []string{"", "x", "xx"} { // wherever base64 puts it
		secret := base64.StdEncoding.EncodeToString([]byte(shift + "not a key"))[4 : 4+8]
		if strings.Contains(string(raw), secret) {
			t.Error("a key is in Consul unsealed")
		}
	}

	// With other keys nothing of it is read, and nothing is written over.
	cfg := f.config("stranger", 0)
	cfg.Keys = newKeys(t)
	stranger := f.open(cfg)
	if _, err := stranger.Get(t.Context(), issuedKey("shop")); !errors.Is(err, store.ErrUnreadable) || !errors.Is(err, seal.ErrNoKey) {
		t.Error("a stranger reads:", err)
	}
	l.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if m, err := stranger.Lead(ctx); err == nil {
		t.Error("a node that can't open the order leads")
		m.Release()
	}
	// A record that is damaged keeps nobody from leading.
	m := lead(t, n)
	f.edit(t, "order/bad", []byte("{"))
	f.edit(t, "order/worse", []byte(`{"v":1,"name":"worse","private":"tink1:AAAA"}`))
	m.Release()
	lead(t, n).Release()
}

// With the meta record gone a node that has never known the fleet's id must not give the fleet another one.
func TestFleetKeepsItsID(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	cfg := f.config("a", 0)
	cfg.StateDir = t.TempDir()
	n := f.open(cfg)
	l := lead(t, n)
	var account store.Record
	for _, r := range storetest.Records("shop") {
		if r.Key().Kind == store.KindAccount {
			account = r
		}
	}
	commit(t, n, l, store.Put(account))
	l.Release()
	f.edit(t, "meta", nil)

	stranger := f.open(f.config("b", 0))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if m, err := stranger.Lead(ctx); err == nil {
		t.Error("a node without the fleet's id leads")
		m.Release()
	}
	lead(t, n).Release()
	for _, s := range []store.Store{n, stranger, f.open(cfg)} {
		if _, err := s.Get(t.Context(), account.Key()); err != nil {
			t.Error("the account can't be read any more:", err)
		}
	}
}

func TestRotation(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	fleet1, issuer1 := fresh(t), fresh(t)
	start := func(name string, fleetKeys []byte) *node {
		cfg := f.config(name, 0)
		cfg.Keys = load(t, fleetKeys, issuer1)
		return f.start(cfg)
	}
	a, b := start("a", fleet1), start("b", fleet1)
	l := lead(t, a)
	commit(t, a, l, store.Put(certificate("shop", 1)))
	l.Release()
	a.stop()

	// One node has the new key as its primary already, the other has not got it: the old one seals.
	fleet2, id, err := seal.Add(fleet1)
	if err == nil {
		fleet2, err = seal.Promote(fleet2, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	a = start("a", fleet2)
	l = lead(t, a)
	eventually(t, 5*time.Second, "both are live", func() bool {
		nodes, err := a.Nodes(t.Context())
		return err == nil && len(nodes) == 2 && nodes[0].Live && nodes[1].Live
	})
	commit(t, a, l, store.Put(certificate("mail", 1)))
	if _, err := b.Get(t.Context(), issuedKey("mail")); err != nil {
		t.Error("sealed with a key that not every live node has:", err)
	}
	b.stop()
	b = start("b", fleet2)
	var unused []string
	eventually(t, 10*time.Second, "everything is sealed with the new key", func() bool {
		unused, err = a.Reseal(t.Context(), l)
		return err == nil && len(unused) == 1
	})
	if want := seal.Words(load(t, fleet1, nil).IDs()[0]); unused[0] != want {
		t.Errorf("%s may go, want %s", unused[0], want)
	}
	fleet3, err := seal.Drop(fleet2, oldID(t, fleet1))
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	b = start("b", fleet3)
	for _, name := range []string{"shop", "mail"} {
		if _, err := b.Get(t.Context(), issuedKey(name)); err != nil {
			t.Error("not sealed anew:", err)
		}
	}
}

// oldID is the number of the only key in a keyset.
func oldID(t *testing.T, text []byte) uint32 {
	t.Helper()
	id := load(t, text, nil).IDs()[0]
	var n uint32
	for _, c := range id[1:] {
		n = n<<4 | uint32(strings.IndexRune("0123456789abcdef", c))
	}
	return n
}

func TestForeignCertificates(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	leader, n := f.start(f.config("leader", 0)), f.start(f.config("a", 0))
	lead(t, leader)
	var told []string
	news := make(chan []string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.FollowForeign(ctx, func(names []string) { news <- names }) }()
	defer func() { cancel(); <-done }()
	<-news
	plain := classicPEM(t, "old.example")
	f.edit(t, "certs/old.pem", plain)
	f.edit(t, "certs/other", []byte(base64.StdEncoding.EncodeToString(classicPEM(t, "other.example"))+"\n"))
	f.edit(t, "certs/broken.crt", []byte("hush-hush"))
	eventually(t, 15*time.Second, "told of all", func() bool {
		select {
		case names := <-news:
			told = append(told, names...)
		default:
		}
		return slices.Contains(told, "old") && slices.Contains(told, "other") && slices.Contains(told, "broken")
	})
	if c, err := n.Foreign(t.Context(), "old"); err != nil || c.Bundle.Domains[0] != "old.example" {
		t.Error(c.Name, err)
	}
	list, bad, err := n.ListForeign(t.Context())
	if err != nil || len(list) != 2 || len(bad) != 1 || strings.Contains(bad[0].Error(), "hush") {
		t.Error(len(list), bad, err)
	}
	f.edit(t, "certs/other", nil)
	told = nil
	eventually(t, 15*time.Second, "told of the deletion", func() bool {
		select {
		case names := <-news:
			told = append(told, names...)
		default:
		}
		return slices.Contains(told, "other")
	})
	if _, err := n.Foreign(t.Context(), "other"); !errors.Is(err, store.ErrAbsent) {
		t.Error(err)
	}
}

// With nobody to lead, each node looks for other tools' certificates itself.
func TestForeignWithoutLeader(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	cfg := f.config("edge", 0)
	cfg.Role = consul.RoleEdge
	n := f.start(cfg)
	news := make(chan []string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.FollowForeign(ctx, func(names []string) { news <- names }) }()
	defer func() { cancel(); <-done }()
	<-news
	for i := range 2 {
		f.edit(t, "certs/old", classicPEM(t, "old.example"))
		begin := time.Now()
		select {
		case names := <-news:
			if names != nil {
				t.Errorf("told of %v", names)
			}
		case <-time.After(80 * time.Second):
			t.Fatal("told of nothing")
		}
		t.Logf("change %d is told of after %v", i+1, time.Since(begin).Round(time.Millisecond))
		if c, err := n.Foreign(t.Context(), "old"); err != nil || c.Bundle.Domains[0] != "old.example" {
			t.Error(err)
		}
	}
	if leader, err := n.Leader(t.Context()); err != nil || leader != "" {
		t.Errorf("%q leads: %v", leader, err)
	}
}

// On the way back from plain everything is read at any time, and in the end nothing is stored as it is.
func TestFromPlain(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	plain := f.config("a", 0)
	plain.Plain = true
	s := f.open(plain)
	l := lead(t, s)
	var keys []store.Key
	for _, r := range storetest.Records("shop") {
		commit(t, s, l, store.Put(r))
		keys = append(keys, r.Key())
	}
	l.Release()

	if _, err := f.open(f.config("b", 0)).Get(t.Context(), issuedKey("shop")); err == nil || !strings.Contains(err.Error(), "SPOACME_SEAL=from-plain") {
		t.Error("who expects it sealed is told:", err)
	}
	back := f.config("a", 0)
	back.FromPlain = true
	s = f.start(back).Store
	l = lead(t, s)
	if _, err := s.Reseal(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	sealed := f.open(f.config("b", 0))
	for _, key := range keys {
		if _, err := sealed.Get(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	raw, err := f.c.Do(t.Context(), f.c.Servers[0], "GET", "/v1/kv/"+f.prefix+"/?recurse=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	if found := storedPlain(t, raw); len(found) > 0 {
		t.Errorf("stored plain: %q", found)
	}
}

// storedPlain lists the keys of values that have the test's private key in them, in whichever form.
func storedPlain(t *testing.T, raw []byte) (found []string) {
	t.Helper()
	var pairs []struct {
		Key   string
		Value []byte
	}
	if err := json.Unmarshal(raw, &pairs); err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		text, _ := base64.StdEncoding.DecodeString(string(p.Value))
		if strings.Contains(string(p.Value)+string(text), "not a key") {
			found = append(found, p.Key)
		}
	}
	return found
}

func TestClassicForm(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	cfg := f.config("a", 0)
	cfg.Plain = true
	s := f.open(cfg)
	l := lead(t, s)
	c := certificate("shop", 1)
	commit(t, s, l, store.Put(c))
	raw, err := f.c.Do(t.Context(), f.c.Servers[0], "GET", "/v1/kv/"+f.prefix+"/certs/shop?raw=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := base64.StdEncoding.DecodeString(string(raw))
	if block, _ := pem.Decode(text); err != nil || block == nil || block.Type != "CERTIFICATE" || !strings.HasSuffix(string(text), "not a key") {
		t.Errorf("%q, %v", text, err)
	}
	if list, bad, err := s.ListForeign(t.Context()); err != nil || len(list) != 0 || len(bad) != 0 {
		t.Error("our own copy is taken for another tool's", list, bad, err)
	}
	commit(t, s, l, store.Delete(c.Key()))
	if raw, err := f.c.Do(t.Context(), f.c.Servers[0], "GET", "/v1/kv/"+f.prefix+"/certs/shop?raw=true", nil); err == nil {
		t.Errorf("the copy is still there: %d bytes", len(raw))
	}
}

// classicPEM is a certificate as other tools put it.
func classicPEM(t *testing.T, domain string) []byte {
	t.Helper()
	b, err := fixture.SelfSigned(domain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
