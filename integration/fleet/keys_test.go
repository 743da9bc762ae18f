package fleet

import (
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestKeysRotate changes both sealing keys of a fleet as `spoacme keygen --help` says, one node after the other, and takes the old
// ones out: everything can be read, renewed and served all the time, and nothing of the old keys is left in Consul.
func TestKeysRotate(t *testing.T) {
	t.Parallel()
	f := start(t, 2, fixture.ConsulOptions{}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 2)
	before := map[string]string{}
	for _, key := range []string{"issued/shop", f.account(t)} {
		before[key] = f.sealedBy(t, key)
	}

	added := regexp.MustCompile(`added key (\d+)`)
	ids := map[string]string{}
	for _, file := range []string{"fleet.json", "issuer.json"} {
		out := f.keygenDo(t, "add", filepath.Join(f.keys, file))
		id := added.FindStringSubmatch(out)
		if id == nil {
			t.Fatalf("keygen add says %q", out)
		}
		ids[file] = id[1]
	}
	f.restartAll(t)
	f.ask(t, 0, "shop")
	f.renewed(t, 30*time.Second, shop, 2)
	if now := f.sealedBy(t, "issued/shop"); now != before["issued/shop"] {
		t.Error("a key that was not promoted seals")
	}
	for i, s := range f.sidecar {
		if strings.Contains(s.Log(), "may be dropped") {
			t.Errorf("lb%d says of a key that is not yet promoted that it may go", i+1)
		}
	}
	for file, id := range ids {
		f.keygenDo(t, "promote", filepath.Join(f.keys, file), id)
	}
	f.restartAll(t)
	begin := time.Now()
	drop := regexp.MustCompile(`level=INFO msg="nothing is sealed with these keys any more: each may be dropped with 'spoacme keygen drop FILE KEY'" keys="fleet.json (\d+), issuer.json (\d+)"`)
	var old []string
	await(t, 60*time.Second, "the leader says which keys may go", func() error {
		for _, s := range f.sidecar {
			if old = drop.FindStringSubmatch(s.Log()); old != nil {
				return nil
			}
		}
		return errors.New("it does not")
	})
	t.Logf("sealed anew %v after the last restart", time.Since(begin).Round(time.Millisecond))
	for key, was := range before {
		if f.sealedBy(t, key) == was {
			t.Errorf("%s is sealed with the old key", key)
		}
	}
	f.keygenDo(t, "drop", filepath.Join(f.keys, "fleet.json"), old[1])
	f.keygenDo(t, "drop", filepath.Join(f.keys, "issuer.json"), old[2])
	f.restartAll(t)
	f.ask(t, 1, "shop")
	f.renewed(t, 30*time.Second, shop, 3)
	for i, s := range f.sidecar {
		if log := s.Log(); strings.Contains(log, "level=ERROR") {
			t.Errorf("lb%d:\n%s", i+1, log)
		}
	}
}

func (f *fleet) keygenDo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := f.sidecar[0].Run(t.Context(), append([]string{"keygen"}, args...)...)
	if err != nil {
		t.Fatalf("keygen %v: %v\n%s", args, err, out)
	}
	return out
}

// restartAll restarts one sidecar after the other.
func (f *fleet) restartAll(t *testing.T) {
	t.Helper()
	for _, s := range f.sidecar {
		must(t, s.Restart())
		f.ready(t, 40*time.Second, len(f.sidecar))
	}
}

// account is the key of the only account.
func (f *fleet) account(t *testing.T) string {
	t.Helper()
	text := strings.TrimSpace(string(f.do(t, "GET", "/v1/kv/le/account/?keys", nil)))
	for name := range strings.SplitSeq(strings.Trim(text, "[]"), ",") {
		if name = strings.Trim(name, `"`); !strings.HasSuffix(name, "/.keep") {
			return strings.TrimPrefix(name, "le/")
		}
	}
	t.Fatalf("no account in %s", text)
	return ""
}

// sealedBy returns what tells with which key a record is sealed: the beginning of what is sealed.
func (f *fleet) sealedBy(t *testing.T, key string) string {
	t.Helper()
	p, err := f.get(t, key)
	must(t, err)
	m := regexp.MustCompile(`"private":"(tink1:[^"]{6})`).FindSubmatch(p.Value)
	if m == nil {
		t.Fatalf("%s is not sealed", key)
	}
	return string(m[1])
}
