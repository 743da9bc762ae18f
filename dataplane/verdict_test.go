package dataplane

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// weak is a certificate that HAProxy does not start with.
func (c *ca) weak(t *testing.T, name string) *store.Bundle {
	t.Helper()
	return c.issue(t, leaf{names: []string{name}, rsa: 1024})
}

// withGood is a HAProxy that serves a good certificate named shop, from a crt-list or a directory.
func withGood(t *testing.T, version, bind string) (*site, *ca, *store.Bundle) {
	t.Helper()
	s, c := newSite(t, version, bind), newCA(t)
	other := c.issue(t, leaf{names: []string{"default.example"}}).PEM()
	s.write("default.pem", other)
	if strings.Contains(bind, "crt-list") {
		s.write("crt/crt-list", nil)
	} else {
		s.write("crt/0default.pem", other)
	}
	s.start()
	good := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour})
	h := s.open()
	deploy(t, h, "shop", good)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return s, c, good
}

func bothPlaces(t *testing.T, f func(t *testing.T, version, bind string)) {
	for name, bind := range map[string]string{"crt-list": "crt DIR/default.pem crt-list DIR/crt/crt-list", "directory": "crt DIR/crt/"} {
		for _, version := range versions[1:] { // 2.2: TestRealRefusedByOld
			t.Run(name+"/"+version, func(t *testing.T) { f(t, version, bind) })
		}
	}
}

func refuses(t *testing.T, h *HAProxy, name string, b *store.Bundle) error {
	t.Helper()
	_, err := h.Deploy(t.Context(), Unit{Name: name, Bundle: b})
	if !errors.Is(err, errContent) {
		t.Fatalf("%s is not refused: %v", name, err)
	}
	return err
}

// starts demands that HAProxy would start, and with what.
func starts(t *testing.T, s *site, when string, good *store.Bundle) {
	t.Helper()
	if err := s.check(); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if !fileHas(s, "shop", good) {
		t.Fatalf("%s: the good certificate is not on disk", when)
	}
}

// TestRealRefusedIsNotWritten: what HAProxy refuses never lies on disk, however often it is tried, whatever went wrong at the
// try before, and not when HAProxy is down and the sidecar a new one.
func TestRealRefusedIsNotWritten(t *testing.T) {
	bothPlaces(t, func(t *testing.T, version, bind string) {
		s, c, good := withGood(t, version, bind)
		weak := c.weak(t, "shop.example")
		before := stampOf(must(os.Stat(filepath.Join(s.crtDir, "shop.pem"))))
		h := s.open()

		theirs := filepath.Join(s.crtDir, "shop.pem")
		if got := s.otherSet(theirs, c.issue(t, leaf{names: []string{"theirs.example"}})); !strings.Contains(got, "Transaction created") {
			t.Fatal(got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := h.Deploy(ctx, Unit{Name: "shop", Bundle: weak}); !errors.Is(err, ErrBusy) {
			t.Fatalf("during another tool's transaction: %v", err)
		}
		starts(t, s, "after a try that passes", good)
		s.cli("abort ssl cert " + theirs)
		for range 3 {
			refuses(t, h, "shop", weak)
			starts(t, s, "after it was refused", good)
		}

		s.kill9()
		refuses(t, h, "shop", weak)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = s.open()
		refuses(t, h, "shop", weak)
		starts(t, s, "while HAProxy is down", good)
		if !before.same(stampOf(must(os.Stat(filepath.Join(s.crtDir, "shop.pem"))))) {
			t.Error("the file was written")
		}
		s.start()
		if s.serves("shop.example") != good.Fingerprint {
			t.Fatal("it did not start with the good one")
		}
		renewed := c.issue(t, leaf{names: []string{"shop.example"}})
		deploy(t, h, "shop", renewed)
		if refused, _ := h.loadVerdicts(); len(refused) != 0 {
			t.Error("what was refused is remembered although another one was taken")
		}
	})
}

// TestRealPutBack: HAProxy can't be asked for a while, so what it would refuse is written; it goes as soon as HAProxy says so,
// also when the sidecar was killed meanwhile.
func TestRealPutBack(t *testing.T) {
	bothPlaces(t, func(t *testing.T, version, bind string) {
		s, c, good := withGood(t, version, bind)
		list, _ := os.ReadFile(s.crtList)
		weak, fresh := c.weak(t, "shop.example"), c.weak(t, "fresh.example")
		blindly(t, s, "shop", weak)
		blindly(t, s, "shop", c.weak(t, "shop.example")) // the good one is still the one to come back
		blindly(t, s, "fresh", fresh)

		h := s.open(func(c *Config) { c.timing.grace = time.Nanosecond })
		text := must(os.ReadFile(filepath.Join(s.crtDir, "shop.pem")))
		refuses(t, h, "shop", must(store.ParseBundle(text)))
		refuses(t, h, "fresh", fresh)
		starts(t, s, "after it was refused", good)
		if now, _ := os.ReadFile(s.crtList); string(now) != string(list) {
			t.Fatalf("crt-list has %q", now)
		}
		h.buryDead(t.Context())
		if _, err := os.Stat(filepath.Join(s.crtDir, "fresh.pem")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the file of a refused certificate: %v", err)
		}
		empty(t, s)

		// One that HAProxy takes is not held up by all this.
		renewed := c.issue(t, leaf{names: []string{"shop.example"}})
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		blindly(t, s, "shop", renewed)
		h = s.open()
		deploy(t, h, "shop", renewed)
		starts(t, s, "after it was taken", renewed)
		empty(t, s)

		// Somebody else wrote it: nothing is known to put back.
		weak = c.weak(t, "shop.example")
		s.write("crt/shop.pem", weak.PEM())
		if err := refuses(t, h, "shop", weak); !strings.Contains(err.Error(), "shop.pem holds it, and nothing else is known that HAProxy would start with; renew it") {
			t.Fatal(err)
		}
	})
}

// blindly deploys over a socket that nobody listens on, with a sidecar that ends then.
func blindly(t *testing.T, s *site, name string, b *store.Bundle) {
	t.Helper()
	p, err := s.open().Locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := s.open(func(c *Config) { c.Socket, c.CrtDir, c.CrtList = filepath.Join(s.dir, "none"), p.CrtDir, p.CrtList })
	if _, err := h.Deploy(t.Context(), Unit{Name: name, Bundle: b}); !errors.Is(err, ErrDown) {
		t.Fatal(err)
	}
	if !fileHas(s, name, b) {
		t.Fatalf("%s was not written", name)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// empty demands that nothing is left in the directory of temporary files.
func empty(t *testing.T, s *site) {
	t.Helper()
	if left := must(os.ReadDir(filepath.Join(s.crtDir, tmpDir))); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestRealRefusedByOld: HAProxy 2.2 dies of the next command about a transaction whose commit it refused. It is sent none, and
// no certificate until it is reloaded; the files are right, so the reload takes them.
func TestRealRefusedByOld(t *testing.T) {
	strict := filepath.Join(t.TempDir(), "openssl.cnf") // as OpenSSL 3 is by itself
	if err := os.WriteFile(strict, []byte("openssl_conf=x\n[x]\nssl_conf=y\n[y]\nsystem_default=z\n[z]\nCipherString=DEFAULT@SECLEVEL=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OPENSSL_CONF", strict)
	s, c, good := withGood(t, "2.2", "crt DIR/default.pem crt-list DIR/crt/crt-list")
	pid := s.pid()
	alive := func(when string) {
		t.Helper()
		if s.pid() != pid || s.serves("shop.example") != good.Fingerprint {
			t.Fatalf("%s: HAProxy has not survived it", when)
		}
		starts(t, s, when, good)
	}
	weak := c.weak(t, "shop.example")
	h := s.open()
	deploy(t, h, "extra", c.issue(t, leaf{names: []string{"extra.example"}}))
	if err := refuses(t, h, "shop", weak); !strings.Contains(err.Error(), "can be given no certificate after that: reload it") {
		t.Fatal(err)
	}
	alive("refused")
	if err := h.Remove(t.Context(), "extra", false); err != nil {
		t.Fatal(err)
	}
	alive("removed another one")
	other := c.issue(t, leaf{names: []string{"other.example"}, age: time.Hour})
	for range 2 { // the second time it is another sidecar
		_, err := h.Deploy(t.Context(), Unit{Name: "other", Bundle: other})
		if !errors.Is(err, errWrecked) || !strings.Contains(err.Error(), "has refused a certificate since its last reload; reload it; the file is written, so a reload takes it too") {
			t.Fatal(err)
		}
		if _, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: weak}); err == nil {
			t.Fatal("taken")
		}
		alive("asked for more")
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = s.open()
	}
	s.reload()
	if s.serves("other.example") != other.Fingerprint {
		t.Fatal("the reload does not take it")
	}
	if err := refuses(t, h, "shop", weak); !strings.Contains(err.Error(), "is not asked twice; renew it") {
		t.Fatal(err)
	}
	deploy(t, h, "other", c.issue(t, leaf{names: []string{"other.example"}}))
	deploy(t, h, "shop", c.issue(t, leaf{names: []string{"shop.example"}}))
}
