package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// After kill -9 the sockets are still there: the next sidecar takes their place. It does not take that of one which is alive.
func TestSocketsAfterKill(t *testing.T) {
	for name, open := range map[string]func(path string) (net.Listener, error){
		"SPOACME_HTTP":    func(path string) (net.Listener, error) { return listen("unix@"+path, "SPOACME_HTTP") },
		"SPOACME_CONTROL": listenControl,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			dead.SetUnlinkOnClose(false)
			if err := dead.Close(); err != nil {
				t.Fatal(err)
			}
			ln, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			info, err := os.Lstat(path)
			if err != nil || info.Mode() != os.ModeSocket|0o660 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			if _, err := open(path); err == nil || !strings.Contains(err.Error(), "another process answers there") {
				t.Errorf("a second one: %v", err)
			}
		})
	}
}
