package fleet

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// serials returns what every node serves for a name.
func (f *fleet) serials(t *testing.T, name string) []string {
	t.Helper()
	var all []string
	for _, h := range f.haproxy {
		s, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s.Leaf().SerialNumber.Text(16))
	}
	return all
}

// do makes a request of Consul that must succeed.
func (f *fleet) do(t *testing.T, method, path string, body []byte) []byte {
	t.Helper()
	b, err := f.consul.Do(t.Context(), f.consul.Servers[0], method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stored waits until Consul holds a record of these kinds in which a text occurs.
func (f *fleet) stored(t *testing.T, limit time.Duration, key, text string) {
	t.Helper()
	err := fixture.Await(t.Context(), limit, func() error {
		b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/"+key+"?raw", nil)
		if err == nil && !strings.Contains(string(b), text) {
			err = fmt.Errorf("%s is not in %s", text, key)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPrefixDeleted: somebody deletes all keys under a live leader. What is served stays, and comes back into the store; nothing
// is ordered again, and the account stays the same.
func TestPrefixDeleted(t *testing.T) {
	f := start(t, 3, fixture.ConsulOptions{}, settings{"SPOACME_CERTS": "shop,blog", "SPOACME_CERT_blog": "blog.example.com"})
	f.run(t)
	f.served(t, 30*time.Second, "shop.example.com")
	f.served(t, 30*time.Second, "blog.example.com")
	if out, err := f.sidecar[0].Run(t.Context(), "issue", "hand", "hand.example.com"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.served(t, 10*time.Second, "hand.example.com")
	names := []string{"shop", "blog", "hand"}
	before := map[string][]string{}
	for _, n := range names {
		before[n] = f.serials(t, n+".example.com")
	}
	f.do(t, http.MethodDelete, "/v1/kv/le?recurse", nil)
	for _, n := range names {
		f.stored(t, 90*time.Second, "issued/"+n, `"serial":"`+before[n][0]+`"`)
	}
	for _, n := range names {
		if now := f.serials(t, n+".example.com"); fmt.Sprint(now) != fmt.Sprint(before[n]) {
			t.Errorf("%s: served %v, before %v", n, now, before[n])
		}
	}
	if n := len(f.pebble.Orders()); n != 3 {
		t.Errorf("%d orders at the authority, want 3", n)
	}
	// And it goes on: with the same account.
	if out, err := f.sidecar[1].Run(t.Context(), "issue", "after", "after.example.com"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.served(t, 20*time.Second, "after.example.com")
	if n := strings.Count(f.pebble.Log(), "accounts in memory"); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	f.copies(t)
}

// TestOlderSnapshot: a snapshot from before a renewal is restored. The newer certificate is kept and comes back into the store.
func TestOlderSnapshot(t *testing.T) {
	f := start(t, 3, fixture.ConsulOptions{}, settings{})
	f.run(t)
	f.served(t, 30*time.Second, "shop.example.com")
	old := f.serials(t, "shop.example.com")[0]
	snapshot := f.do(t, http.MethodGet, "/v1/snapshot", nil)
	later(t, 2*time.Second) // certificates of one second can't be told apart by age
	f.awaitSerial(t, func() { f.renew(t, "shop") }, "shop.example.com", old)
	renewed := f.serials(t, "shop.example.com")[0]
	f.do(t, http.MethodPut, "/v1/snapshot", snapshot)
	began := time.Now()
	f.stored(t, 40*time.Second, "issued/shop", `"serial":"`+renewed+`"`)
	t.Logf("the newer certificate is stored again %v after the restore", time.Since(began).Round(time.Millisecond))
	for i, s := range f.serials(t, "shop.example.com") {
		if s != renewed {
			t.Errorf("lb%d serves %s, want %s", i+1, s, renewed)
		}
	}
	if n := len(f.pebble.Orders()); n != 2 {
		t.Errorf("%d orders at the authority, want 2", n)
	}
	f.noOffers(t)
}

// later waits until it is later.
func later(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

func (f *fleet) renew(t *testing.T, name string) {
	t.Helper()
	if out, err := f.sidecar[0].Run(t.Context(), "renew", name); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// awaitSerial does something and waits until every node serves another certificate.
func (f *fleet) awaitSerial(t *testing.T, do func(), name, old string) {
	t.Helper()
	do()
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		for i, h := range f.haproxy {
			s, err := fixture.Fetch(t.Context(), h.HTTPS.Addr(), name)
			if err != nil {
				return err
			}
			if s.Leaf().SerialNumber.Text(16) == old {
				return fmt.Errorf("lb%d still serves %s", i+1, old)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// noOffers demands that offers are withdrawn when they have been taken.
func (f *fleet) noOffers(t *testing.T) {
	t.Helper()
	err := fixture.Await(t.Context(), 60*time.Second, func() error {
		b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/nodes/?keys", nil)
		if err == nil && strings.Contains(string(b), "/offer/") {
			err = errors.New("offers are left: " + string(b))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestIssuedDeleted: the certificates are deleted from the store and the leader has none: another node offers.
func TestIssuedDeleted(t *testing.T) {
	f := start(t, 3, fixture.ConsulOptions{}, settings{})
	f.run(t)
	f.served(t, 30*time.Second, "shop.example.com")
	serial := f.serials(t, "shop.example.com")[0]
	f.do(t, http.MethodDelete, "/v1/kv/le/issued?recurse", nil)
	f.stored(t, 30*time.Second, "issued/shop", `"serial":"`+serial+`"`)
	if n := len(f.pebble.Orders()); n != 1 {
		t.Errorf("%d orders at the authority, want 1", n)
	}
}

// TestDirectoryLost: the store of a node on its own is deleted. What HAProxy has on disk is taken back, with the account.
func TestDirectoryLost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: "2.6", Settings: settings{"SPOACME_STORE": "file://" + dir}})
	p := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: h.HTTP.Number})
	if err := errors.Join(h.Set("SPOACME_CA", p.Directory()), h.Restart()); err != nil {
		t.Fatal(err)
	}
	f := &fleet{pebble: p, haproxy: []*fixture.HAProxy{h}}
	f.sidecar = []*fixture.Sidecar{fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h, Pebble: p})}
	f.served(t, 30*time.Second, "shop.example.com")
	serial := f.serials(t, "shop.example.com")[0]
	f.sidecar[0].Pause()
	if err := errors.Join(os.RemoveAll(dir), f.sidecar[0].Restart()); err != nil {
		t.Fatal(err)
	}
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(dir, "issued", "shop.json"))
		if err == nil && !strings.Contains(string(b), `"serial":"`+serial+`"`) {
			err = errors.New("another certificate is stored")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := f.sidecar[0].Run(t.Context(), "issue", "after", "after.example.com"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := len(p.Orders()); n != 2 {
		t.Errorf("%d orders at the authority, want 2", n)
	}
	if n := strings.Count(p.Log(), "accounts in memory"); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	f.copies(t)
}

// copies demands that what sidecars keep for themselves is for their own user only.
func (f *fleet) copies(t *testing.T) {
	t.Helper()
	for _, s := range f.sidecar {
		found := 0
		err := filepath.WalkDir(s.State(), func(path string, e os.DirEntry, err error) error {
			if err != nil || !strings.Contains(path, "/copy-") {
				return err
			}
			info, err := e.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v", path, info.Mode())
			}
			if strings.HasSuffix(path, ".json") {
				found++
			}
			return err
		})
		if err != nil || found == 0 {
			t.Errorf("%d copies: %v", found, err)
		}
	}
}
