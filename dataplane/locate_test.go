package dataplane

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "crt-list")
	tests := []struct {
		name   string
		asked  Place
		loaded []string
		want   Place
		err    string
	}{
		{"the only list", Place{}, []string{list}, Place{dir, list}, ""},
		{"the only directory", Place{}, []string{dir}, Place{dir, dir}, ""},
		{"none", Place{}, nil, Place{}, "HAProxy has loaded neither a crt-list nor a certificate directory; write `bind :443 ssl strict-sni crt-list /etc/haproxy/spoacme/crt-list` and reload"},
		{"several", Place{}, []string{"/a", "/b"}, Place{}, "HAProxy has loaded several crt-lists or certificate directories (/a, /b); choose with `setenv SPOACME_CRT_LIST …`"},
		{"chosen", Place{CrtList: "/b"}, []string{"/a", "/b"}, Place{"/", "/b"}, ""},
		{"chosen, in HAProxy's spelling", Place{CrtList: "/c/b"}, []string{"/a", "/c//b"}, Place{"/c", "/c//b"}, ""},
		{"chosen and not loaded", Place{CrtList: "/c"}, []string{"/a", "/b"}, Place{}, "HAProxy has not loaded the crt-list /c (loaded: /a, /b); name it on a bind line, or correct SPOACME_CRT_LIST"},
		{"PEM files elsewhere", Place{CrtDir: "/pem"}, []string{list}, Place{"/pem", list}, ""},
		{"PEM files not in the directory", Place{CrtDir: "/pem"}, []string{dir}, Place{}, "HAProxy loads the certificates of directory " + dir + ", so they can't be kept in /pem; drop SPOACME_CRT_DIR, or use a crt-list"},
		{"relative", Place{}, []string{"certs/list"}, Place{}, `path "certs" is relative to HAProxy's working directory; write an absolute path`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose(tt.asked, tt.loaded)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("%+v, %v; want %+v, %s", got, err, tt.want, tt.err)
			}
		})
	}
}

// TestRealSettings: what the sidecar reads from HAProxy, and knows without it.
func TestRealSettings(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.config = strings.Replace(s.config, "global\n", "global\n    setenv SPOACME_EMAIL ops@example.com\n    setenv SPOACME_CERT_shop \"shop.example,dns=x=1;#,*\"\n    setenv OTHER 1\n", 1)
		s.start()
		h := s.open()
		env, err := h.Env(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"SPOACME_EMAIL": "ops@example.com", "SPOACME_CERT_shop": "shop.example,dns=x=1;#,*"}
		for k, v := range want {
			if env[k] != v {
				t.Errorf("%s is %q, want %q", k, env[k], v)
			}
		}
		if env["OTHER"] != "1" || env["PATH"] == "" {
			t.Error("the rest of the environment is missing")
		}
		if err := h.SaveEnv(env); err != nil {
			t.Fatal(err)
		}
		shop := c.issue(t, leaf{names: []string{"shop.example"}})
		deploy(t, h, "shop", shop)
		inv, err := h.Inventory(t.Context())
		if err != nil || len(inv.Certificates) != 2 || len(inv.Lists) != 1 || len(inv.Lists[0].Entries) != 1 || inv.Transaction != "" {
			t.Fatalf("inventory %+v, %v", inv, err)
		}
		p, err := h.Process(t.Context())
		if err != nil || p.PID != s.pid() || !strings.HasPrefix(p.Version, version) || time.Since(p.Started) > time.Minute || !p.AtLeast(2, 2) || p.AtLeast(4, 0) {
			t.Fatalf("process %+v, %v", p, err)
		}

		s.kill9()
		_ = h.Close()
		h = s.open()
		if got, err := h.LoadEnv(); err != nil || !maps.Equal(got, want) {
			t.Fatalf("cached settings %v, %v", got, err)
		}
		if fi := must(os.Stat(filepath.Join(s.dir, "state", cacheFile))); fi.Mode().Perm() != 0o600 {
			t.Errorf("cache has mode %o", fi.Mode().Perm())
		}
		renewed := c.issue(t, leaf{names: []string{"shop.example"}})
		if _, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: renewed}); !errors.Is(err, ErrDown) {
			t.Fatalf("deploy with HAProxy down: %v", err)
		}
		if !fileHas(s, "shop", renewed) {
			t.Fatal("the file was not written")
		}
	})
}

func TestCacheDamaged(t *testing.T) {
	h := openAt(t, "/nowhere")
	if env, err := h.LoadEnv(); env != nil || err != nil {
		t.Fatalf("nothing there: %v, %v", env, err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, cacheFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.LoadEnv(); err == nil {
		t.Fatal("damaged: no error")
	}
	if err := h.SaveEnv(map[string]string{"SPOACME_X": "1", "TOKEN": "2"}); err != nil {
		t.Fatal(err)
	}
	if env, err := h.LoadEnv(); err != nil || len(env) != 1 || env["SPOACME_X"] != "1" {
		t.Fatalf("%v, %v", env, err)
	}
	if err := h.SaveEnv(map[string]string{"SPOACME_X": strings.Repeat("x", maxCache)}); err == nil {
		t.Fatal("too large: no error")
	}
}

func TestRealSecondSidecar(t *testing.T) {
	s, c := withList(t, "3.2")
	s.start()
	first, second := s.open(), s.open()
	shop := c.issue(t, leaf{names: []string{"shop.example"}})
	deploy(t, first, "shop", shop)
	_, err := second.Deploy(t.Context(), Unit{Name: "shop", Bundle: shop})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "stop the other one, or give this one a directory of its own with SPOACME_CRT_DIR") {
		t.Fatalf("second: %v", err)
	}
	if err := second.Run(t.Context(), &liveSource{}); err != nil && !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
	if _, err := second.Served(t.Context(), "shop"); err != nil {
		t.Fatalf("reading needs no lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Deploy(t.Context(), Unit{Name: "shop", Bundle: shop}); err != nil {
		t.Fatalf("after the first one ended: %v", err)
	}
}

// TestRealHeld: neither a better file nor a better certificate in HAProxy is replaced by an older one of the store.
func TestRealHeld(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		h := s.open()
		old := c.issue(t, leaf{names: []string{"shop.example"}, age: 5 * time.Hour})
		better := c.issue(t, leaf{names: []string{"shop.example"}})
		deploy(t, h, "shop", better)
		_, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: old})
		if !errors.Is(err, ErrHeld) || s.serves("shop.example") != better.Fingerprint || !fileHas(s, "shop", better) {
			t.Fatalf("file: %v", err)
		}
		if err := os.Remove(filepath.Join(s.crtDir, "shop.pem")); err != nil {
			t.Fatal(err)
		}
		_, err = h.Deploy(t.Context(), Unit{Name: "shop", Bundle: old})
		if !errors.Is(err, ErrHeld) || s.serves("shop.example") != better.Fingerprint {
			t.Fatalf("memory: %v", err)
		}
		expired := c.issue(t, leaf{names: []string{"new.example"}, age: 91 * 24 * time.Hour})
		if _, err := h.Deploy(t.Context(), Unit{Name: "new", Bundle: expired}); !errors.Is(err, ErrHeld) {
			t.Fatalf("expired: %v", err)
		}
		if _, err := os.Stat(filepath.Join(s.crtDir, "new.pem")); err == nil {
			t.Fatal("an expired certificate was written")
		}
	})
}

// TestRealUnchanged: what is there already is neither written nor sent.
func TestRealUnchanged(t *testing.T) {
	s, c := withList(t, "2.6")
	s.start()
	h := s.open()
	shop := c.issue(t, leaf{names: []string{"shop.example"}})
	deploy(t, h, "shop", shop)
	file := filepath.Join(s.crtDir, "shop.pem")
	before, list := must(os.Stat(file)), must(os.Stat(s.crtList))
	for range 3 {
		deploy(t, h, "shop", shop)
	}
	if !stampOf(before).same(stampOf(must(os.Stat(file)))) || !stampOf(list).same(stampOf(must(os.Stat(s.crtList)))) {
		t.Error("a file was written")
	}
	if got := counter(t, h.metrics.swaps.WithLabelValues("done")); got != 1 {
		t.Errorf("%v swaps", got)
	}
}
