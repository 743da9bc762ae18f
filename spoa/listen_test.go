package spoa

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := Listen("unix@" + path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	serve(t, New(Config{Table: table(t)}), ln)
	if _, err := Listen("unix@" + path); err == nil || !strings.Contains(err.Error(), "another process answers there; stop it") {
		t.Errorf("second Listen: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	h := newHAProxy(c)
	if err := h.hello("engine"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ask(1, challengePrefix+token); err != nil || got != "keyauth="+keyAuth {
		t.Errorf("%q, %v", got, err)
	}
}

// A socket that nobody listens on is replaced; so is a temporary one.
func TestListenUnixAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, p := range []string{path, path + newSuffix} {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		_ = dead.Close()
	}
	ln, err := Listen("unix@" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A listener that is closed late leaves its successor's socket alone.
func TestListenUnixKeepsSuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := Listen("unix@" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	successor, err := Listen("unix@" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = successor.Close() }()
	_ = old.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("successor's socket: %v", err)
	}
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for _, c := range []struct{ addr, want string }{
		{"", "give host:port or unix@/path"},
		{"127.0.0.1", "give host:port or unix@/path"},
		{"abns@x", "give host:port or unix@/path"},
		{"127.0.0.1:99999", "choose another address"},
		{taken.Addr().String(), "stop the other program"},
		{"192.0.2.1:0", "choose an address of this machine"},
		{"unix@relative", "must be absolute"},
		{"unix@/" + strings.Repeat("x", 120), "at most"},
		{"unix@" + file, "is not a socket; remove it"},
		{"unix@" + dir, "is not a socket; remove it"},
		{"unix@" + dir + "/missing/s", "make the folder"},
	} {
		ln, err := Listen(c.addr)
		if err == nil {
			_ = ln.Close()
			t.Errorf("%s: no error", c.addr)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.addr, err, c.want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("file in the way: %q, %v", b, err)
	}
}
