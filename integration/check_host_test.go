package integration

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/check"
	"github.com/spoacme/spoacme/integration/fixture"
)

// The sidecar's own part of the machine: addresses, store, clock, HAProxy down.
func TestCheckHost(t *testing.T) {
	h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: "2.6"})
	off := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			next.ServeHTTP(w, r)
		})
	}
	p := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: h.HTTP.Number, Intercept: off})
	s := fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h, Pebble: p})
	s.Pause()
	ln, err := net.Listen("tcp", h.Sidecar.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	storeDir := filepath.Join(filepath.Dir(h.ConfigDir()), "store")
	if err := os.Chmod(storeDir, 0o755); err != nil {
		t.Fatal(err)
	}
	v := runCheck(t, h, s, "--ca", p.Directory())
	v.finds(t, check.OK, "ca", p.Directory()+" answers in")
	v.finds(t, check.Fail, "clock", "this machine is 1h0m") // and a second, or none: the CA tells whole ones
	v.finds(t, check.Fail, "address", "SPOACME_HTTP "+h.Sidecar.Addr()+": another program listens there")
	v.finds(t, check.Fail, "store", storeDir+" has mode 0755, and private keys are in it")
	h.Pause()
	v = runCheck(t, h, s, "--ca", p.Directory())
	v.finds(t, check.Fail, "socket", "start HAProxy")
	v.finds(t, check.Note, "settings", "these are the settings of last time")
	v.finds(t, check.OK, "certificate", "shop: shop.example.com")
	v = runCheck(t, h, s, "--ca", p.Directory(), "-f", h.ConfigDir())
	v.finds(t, check.Note, "settings", "these are the settings as "+filepath.Join(h.ConfigDir(), "haproxy.cfg")+" has them")
	v.finds(t, check.OK, "certificate", "shop: shop.example.com")
	v.finds(t, check.OK, "frontend", "challenges are answered before every other rule")
	if err := os.Remove(h.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	runCheck(t, h, s).finds(t, check.Fail, "socket", "no such socket")
}

// What the user may do is looked at: the group of the socket is named.
func TestCheckRights(t *testing.T) {
	h, _ := beside(t, fixture.HAProxyOptions{Version: "3.2"})
	dir := filepath.Dir(h.ConfigDir())
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // then this user is the one without rights
		if err := errors.Join(os.Chmod(h.Socket(), 0), os.Chmod(filepath.Dir(h.CrtList()), 0o555)); err != nil {
			t.Fatal(err)
		}
		asNobody(t, h).finds(t, check.Fail, "socket", "permission denied")
		return
	}
	const group = 4 // adm
	if err := errors.Join(os.Chown(h.Socket(), 0, group), os.Chmod(h.Socket(), 0o660)); err != nil {
		t.Fatal(err)
	}
	asNobody(t, h).finds(t, check.Fail, "socket", "permission denied", "join group adm")
	if err := os.Chmod(h.Socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	v := asNobody(t, h)
	v.finds(t, check.OK, "socket", "level admin")
	v.finds(t, check.Fail, "crt-list", "nobody can't write to "+filepath.Dir(h.CrtList()))
	v.finds(t, check.Fail, "store")
}

// asNobody runs the command as a user without rights, as far as this one may do that.
func asNobody(t *testing.T, h *fixture.HAProxy) verdict {
	t.Helper()
	binary, err := fixture.Binary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	// Where everybody may run it.
	binary = filepath.Join(filepath.Dir(h.ConfigDir()), "spoacme")
	if err := os.WriteFile(binary, text, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "check", "--json", "--socket", h.Socket(), "--state", "/nonexistent/state", "--control", "/nonexistent/control")
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.Output()
	return parseVerdict(t, string(out), err)
}

// A unix address is looked for inside HAProxy's chroot, which only root can set up.
func TestCheckChroot(t *testing.T) {
	opts := fixture.HAProxyOptions{Version: "2.6", Settings: map[string]string{"SPOACME_AGENT": "unix@/run/agent.sock"}, Chroot: os.Geteuid() == 0}
	h := fixture.StartHAProxy(t, opts)
	s := fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h, Env: []string{"SPOACME_AGENT=" + h.Agent.Addr()}})
	s.Pause()
	v := runCheck(t, h, s, "--agent", "unix@/run/agent.sock")
	if opts.Chroot {
		v.finds(t, check.Fail, "agent", "inside its chroot", "--agent unix@"+filepath.Join(filepath.Dir(h.ConfigDir()), "chroot", "run/agent.sock"))
		return
	}
	v.finds(t, check.Note, "agent", "no sidecar runs")
}
