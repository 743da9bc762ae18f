package dataplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealRemoveDown: whether HAProxy starts without a certificate only HAProxy can tell. While it is down, the certificate
// stays, and a removal that was not possible is not, or is, when it is back.
func TestRealRemoveDown(t *testing.T) {
	for _, site := range []struct {
		name, bind string
		needed     bool
	}{
		{"the only one of a crt-list", "crt-list DIR/crt/crt-list", true},
		{"the only one of a directory", "crt DIR/crt/", true},
		{"beside a default certificate", "crt DIR/default.pem crt-list DIR/crt/crt-list", false},
	} {
		t.Run(site.name, func(t *testing.T) {
			each(t, func(t *testing.T, version string) { removeDown(t, version, site.bind, site.needed) })
		})
	}
}

func removeDown(t *testing.T, version, bind string, needed bool) {
	s, c := newSite(t, version, bind), newCA(t)
	other := c.issue(t, leaf{names: []string{"other.example"}})
	s.write("default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
	s.write("crt/other.pem", other.PEM())
	file := filepath.Join(s.crtDir, "other.pem")
	if strings.Contains(bind, "crt-list") {
		s.write("crt/crt-list", []byte(file+"\n"))
	}
	s.start()
	h := s.open()
	if _, err := h.Served(t.Context(), "other"); err != nil { // where certificates go is known when HAProxy is down
		t.Fatal(err)
	}
	s.kill9()
	err := h.Remove(t.Context(), "other", false)
	if !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "HAProxy can't be asked whether it starts without it") {
		t.Fatalf("while it is down: %v", err)
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	s.start()
	if s.serves("other.example") != other.Fingerprint {
		t.Fatal("it did not start with the certificate")
	}
	err = h.Remove(t.Context(), "other", false)
	switch {
	case needed && (err == nil || !strings.Contains(err.Error(), "it is the only one")):
		t.Fatalf("the only one: %v", err)
	case !needed && err != nil && !strings.Contains(err.Error(), "reload HAProxy"):
		t.Fatal(err)
	case !needed && strings.Contains(string(must(os.ReadFile(s.crtList))), file):
		t.Fatal("its line is still there")
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveForcedWhileDown: who forces it need not wait for HAProxy.
func TestRemoveForcedWhileDown(t *testing.T) {
	h := openAt(t, "/nowhere/s")
	list := filepath.Join(h.asked.CrtDir, "crt-list")
	h.SetPlace(h.asked.CrtDir, list)
	if err := os.WriteFile(list, []byte(filepath.Join(h.asked.CrtDir, "shop.pem")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(t.Context(), "shop", false); !errors.Is(err, ErrDown) {
		t.Fatalf("not forced: %v", err)
	}
	if err := h.Remove(t.Context(), "shop", true); err != nil {
		t.Fatal(err)
	}
	if text := string(must(os.ReadFile(list))); text != "" {
		t.Fatalf("crt-list has %q", text)
	}
}
