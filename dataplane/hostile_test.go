package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve listens on a unix socket and gives every connection to f.
func serve(t testing.TB, f func(c net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return path
}

func openAt(t testing.TB, socket string) *HAProxy {
	t.Helper()
	h, err := Open(Config{Socket: socket, StateDir: t.TempDir(), CrtDir: t.TempDir(), CrtList: "/nowhere/list", Logger: testLogger(t),
		timing: timing{command: 300 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func request(c net.Conn) string {
	buf := make([]byte, 64<<10)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

// hostile is a socket that is not as HAProxy's should be, and what the user is told.
type hostile struct{ name, socket, err string }

func hostileSockets(t *testing.T) []hostile {
	answer := "\nName: HAProxy\nVersion: 2.6.12\nPid: 7\nUptime_sec: 5\n\n"
	stale := filepath.Join(t.TempDir(), "stale")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	_ = ln.Close()
	say := func(text string) string {
		return serve(t, func(c net.Conn) { request(c); _, _ = io.WriteString(c, text) })
	}
	return []hostile{
		{"missing", filepath.Join(t.TempDir(), "none"), "no such socket; start HAProxy, or give the path of its `stats socket` line with --socket"},
		{"left behind", stale, "nobody listens; start HAProxy"},
		{"never answers", serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "it accepts but does not answer; is something else listening there, or is HAProxy overloaded?"},
		{"closes at once", serve(t, func(net.Conn) {}), "HAProxy's answer ends in the middle; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"},
		{"closes in the middle", say(answer[:30]), "HAProxy's answer ends in the middle; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"},
		{"closes after the first line feed", say("\n"), "HAProxy's answer ends in the middle; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"},
		{"empty answer", say("\n\n"), "`show info` names no process; is the socket HAProxy's stats socket?"},
		{"garbage", say("\x00\xff\x01GIF89a" + strings.Repeat("\xfe", 4000)), "HAProxy's answer ends in the middle; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"},
		{"garbage that ends well", say("HTTP/1.1 400 Bad Request\r\nPid: x\n\n"), "`show info` has a Pid that is no number; is the socket HAProxy's?"},
		{"endless", serve(t, func(c net.Conn) {
			request(c)
			for {
				if _, err := c.Write(bytes.Repeat([]byte("a"), 1<<20)); err != nil {
					return
				}
			}
		}), "HAProxy's answer does not end; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"},
		{"drips for ever", serve(t, func(c net.Conn) {
			request(c)
			for {
				if _, err := c.Write([]byte("a")); err != nil {
					return
				}
				pauseFor(10 * time.Millisecond)
			}
		}), "it accepts but does not answer; is something else listening there, or is HAProxy overloaded?"},
		{"level", say("\n[3]: Permission denied\n\n"), "HAProxy: permission denied: write `level admin` at the end of the `stats socket` line and restart HAProxy"},
		{"old", say("\n[6]: Unknown command. Please enter one of the following commands only :\n  help\n\n"), "HAProxy: it does not know the command; HAProxy 2.2 or newer is needed"},
		{"byte by byte", serve(t, func(c net.Conn) {
			request(c)
			for i := range answer {
				_, _ = io.WriteString(c, answer[i:i+1])
			}
		}), ""},
		{"whole", say(answer), ""},
	}
}

func TestHostileSocket(t *testing.T) {
	for _, tt := range hostileSockets(t) {
		t.Run(tt.name, func(t *testing.T) {
			h := openAt(t, tt.socket)
			if tt.name == "endless" {
				h.timing.command = 5 * time.Second
			}
			p, err := h.Process(t.Context())
			if tt.err == "" {
				if err != nil || p.PID != 7 || p.Version != "2.6.12" {
					t.Fatalf("process %+v, %v", p, err)
				}
				return
			}
			if err == nil || !strings.HasSuffix(err.Error(), tt.err) {
				t.Fatalf("error\n %v\nwant\n …%s", err, tt.err)
			}
			c := newCA(t)
			if _, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: c.issue(t, leaf{names: []string{"shop.example"}})}); err == nil {
				t.Fatal("deploy succeeded")
			}
			if e, err := h.Env(t.Context()); err == nil {
				t.Fatalf("env %v", e)
			}
			if i, err := h.Inventory(t.Context()); err == nil && tt.name != "empty answer" && tt.name != "garbage that ends well" {
				t.Fatalf("inventory %+v", i)
			}
		})
	}
}

// TestContextEndsWait: the caller's context ends a command at once, whatever HAProxy does.
func TestContextEndsWait(t *testing.T) {
	h := openAt(t, serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }))
	h.timing.command = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	begun := time.Now()
	if _, err := h.Process(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Fatalf("it took %s", took)
	}
}

// faulty stands between a real HAProxy and us. change sees every command and HAProxy's answer, and returns what we
// get; ok false closes the connection after it.
func faulty(t testing.TB, real string, change func(command string, answer []byte) []byte) string {
	return serve(t, func(c net.Conn) {
		up, err := net.Dial("unix", real)
		if err != nil {
			return
		}
		defer up.Close()
		buf := make([]byte, 1<<20)
		n, _ := c.Read(buf)
		_, _ = up.Write(buf[:n])
		_ = up.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, _ := io.ReadAll(up)
		_, _ = c.Write(change(string(buf[:n]), answer))
	})
}

// TestRealFaults breaks every command of a unit once, in several ways: Deploy must succeed truly, or fail, and
// the next one must succeed.
func TestRealFaults(t *testing.T) {
	commands := []string{"show info;abort ssl cert", "show pools", "set ssl cert", "show ssl cert *", "commit ssl cert", ";show info", "new ssl cert", "add ssl crt-list", "show ssl crt-list"}
	faults := map[string]func([]byte) []byte{
		"nothing": func([]byte) []byte { return nil },
		"half":    func(a []byte) []byte { return a[:len(a)/2] },
		"minus 1": func(a []byte) []byte { return a[:max(len(a)-1, 0)] },
		"garbage": func([]byte) []byte { return []byte("\n%$&/()\n\n") },
		"empty":   func([]byte) []byte { return []byte("\n\n") },
		"warning": func(a []byte) []byte { return append([]byte("\nwarning: something odd\n"), bytes.TrimLeft(a, "\n")...) },
	}
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		two, done := 0, 0
		for _, command := range commands {
			for name, fault := range faults {
				for _, fresh := range []bool{true, false} {
					two++
					if testing.Short() && two%4 != 0 {
						continue
					}
					done++
					cert := fmt.Sprintf("c%d", two)
					var hit atomic.Bool
					socket := faulty(t, s.socket, func(cmd string, answer []byte) []byte {
						if strings.Contains(cmd, command) && hit.CompareAndSwap(false, true) {
							return fault(answer)
						}
						return answer
					})
					direct := s.open(func(c *Config) { c.Logger = nil })
					if !fresh {
						deploy(t, direct, cert, c.issue(t, leaf{names: []string{cert + ".example"}, age: time.Hour}))
					}
					_ = direct.Close()
					h := s.open(func(c *Config) { c.Socket, c.Logger = socket, nil })
					b := c.issue(t, leaf{names: []string{cert + ".example"}})
					got, err := h.Deploy(t.Context(), Unit{Name: cert, Bundle: b})
					label := fmt.Sprintf("%q %s fresh=%t: %v", command, name, fresh, err)
					if err == nil && (got.Fingerprint != b.Fingerprint || s.serves(cert+".example") != b.Fingerprint) {
						t.Fatalf("%s: false success", label)
					}
					if err != nil && strings.Contains(err.Error(), "BEGIN") {
						t.Fatalf("%s: a payload in an error", label)
					}
					deploy(t, h, cert, b)
					if s.serves(cert+".example") != b.Fingerprint {
						t.Fatalf("%s: not served after the second deploy", label)
					}
					if open := s.cli("show ssl cert"); strings.Contains(open, "# transaction") {
						t.Fatalf("%s: a transaction is open", label)
					}
					_ = h.Close()
				}
			}
		}
		if text := string(must(os.ReadFile(s.crtList))); strings.Count(text, "\n") != done {
			t.Fatalf("%d lines in the crt-list, want %d", strings.Count(text, "\n"), done)
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRealLevel(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		for _, level := range []string{"operator", "user"} {
			s, c := withList(t, version)
			s.config = strings.Replace(s.config, "level admin", "level "+level, 1)
			s.start()
			h := s.open(func(c *Config) { c.CrtDir, c.CrtList = s.crtDir, s.crtList })
			_, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: c.issue(t, leaf{names: []string{"shop.example"}})})
			if err == nil || !strings.Contains(err.Error(), "write `level admin` at the end of the `stats socket` line and restart HAProxy") {
				t.Fatalf("level %s: %v", level, err)
			}
		}
	})
}

func TestPermissionRemedy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := permissionRemedy(path); !strings.Contains(got, "write `mode 660 group GROUP` on the `stats socket` line") {
		t.Errorf("0600: %s", got)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	if got := permissionRemedy(path); !strings.Contains(got, "group") {
		t.Errorf("0660: %s", got)
	}
}
