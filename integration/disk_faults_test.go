package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// smallDisk mounts a small file system, which takes root, as the folder below a new one, and returns both.
func smallDisk(t *testing.T, below string) (top, mounted string) {
	t.Helper()
	top, err := os.MkdirTemp("", "disk")
	must(t, err)
	mounted = filepath.Join(top, below)
	must(t, os.MkdirAll(mounted, 0o755))
	if err := syscall.Mount("tmpfs", mounted, "tmpfs", 0, "size=512k,mode=755"); err != nil {
		t.Fatalf("mount a small disk: %v: run the tests as root", err)
	}
	t.Cleanup(func() {
		_ = syscall.Unmount(mounted, syscall.MNT_DETACH)
		os.RemoveAll(top)
	})
	return top, mounted
}

// fill leaves no room on the disk of a folder, until the returned function is called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 512, 1} {
		for err = error(nil); err == nil; _, err = f.Write(make([]byte, size)) {
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() { must(t, os.Remove(path)) }
}

func readOnly(t *testing.T, dir string, on bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if on {
		flags |= syscall.MS_RDONLY
	}
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", flags, ""))
}

// TestCertificateDisk: the folder of the certificates is full, or read-only. The old file stays whole, the new
// certificate is served all the same, the user is told, and it is written when that is possible.
func TestCertificateDisk(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name   string
		damage func(t *testing.T, dir string) (mend func())
		words  []string
	}{
		{"full", fill, []string{"disk full; free space, HAProxy keeps the old file until then"}},
		{"read-only", func(t *testing.T, dir string) func() {
			readOnly(t, dir, true)
			return func() { readOnly(t, dir, false) }
		}, []string{"read-only file system; mount it read-write, or allow it (ReadWritePaths="}},
	} {
		top, dir := smallDisk(t, "etc/spoacme")
		c := newScene(t, sceneOptions{bare: true, haproxy: fixture.HAProxyOptions{Dir: top}})
		c.issue("shop", "shop.example.com")
		path := filepath.Join(dir, "shop.pem")
		before, err := os.ReadFile(path)
		must(t, err)
		mend := fault.damage(t, dir)
		c.command("renew", "--no-wait", "shop")
		c.command("issue", "--no-wait", "second", "second.example.com")
		c.await(20*time.Second, func() error {
			if len(c.ca.IssuedFor(c.p, "shop.example.com")) < 2 {
				return errors.New("not renewed")
			}
			return errors.Join(c.serves("shop.example.com"), c.serves("second.example.com"))
		})
		c.trouble("shop", fault.words...)
		c.trouble("second", fault.words...)
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s: the old file is not whole: %v", fault.name, err)
		}
		page, err := c.s.Get("/readyz")
		must(t, err)
		expect(t, page, "FAIL disk: 2 certificates are served but not on disk: a restart of HAProxy would lose them; see 'spoacme status'")
		c.restarts()
		mend()
		c.await(60*time.Second, func() error {
			page, err := c.s.Get("/readyz")
			if err == nil && !strings.Contains(page, "ok disk") {
				err = errors.New(page)
			}
			return err
		})
		must(t, c.settled())
		c.restartsTheSame("shop.example.com", "second.example.com")
		c.h.Stop()
	}
}

// TestStoreDisk: the store is full. Nothing is ordered that could not be kept, the user is told once, and it goes on when
// there is room.
func TestStoreDisk(t *testing.T) {
	t.Parallel()
	_, dir := smallDisk(t, "store")
	c := newScene(t, sceneOptions{bare: true, sidecar: fixture.SidecarOptions{Env: []string{"SPOACME_STORE=file://" + dir}}})
	c.issue("shop", "shop.example.com")
	free := fill(t, dir)
	out, err := c.s.Run(t.Context(), "renew", "--no-wait", "shop")
	t.Logf("renew: %v: %s", err, out)
	out, err = c.s.Run(t.Context(), "issue", "--no-wait", "second", "second.example.com")
	t.Logf("issue: %v: %s", err, out)
	var page string
	c.await(20*time.Second, func() (err error) {
		if page, err = c.s.Get("/readyz"); err == nil && !strings.Contains(page, "FAIL store") {
			err = errors.New(page)
		}
		return err
	})
	t.Log(page)
	expect(t, page, "FAIL store: ", "no space left on device", "free space")
	said := len(c.complaints(0))
	<-time.After(4 * time.Second)
	if n := len(c.complaints(0)) - said; n > 8 {
		t.Errorf("%d complaints in four seconds", n)
	}
	must(t, c.serves("shop.example.com"))
	if n := len(c.ca.Calls("finalize")); n != 1 {
		t.Errorf("%d orders were finalized", n)
	}
	free()
	c.await(30*time.Second, func() error {
		page, err := c.s.Get("/readyz")
		if err == nil && !strings.HasSuffix(page, "\nready\n") {
			err = errors.New(page)
		}
		return err
	})
	c.command("renew", "shop")
	must(t, c.serves("shop.example.com"))
}

// TestUmask: whatever umask the sidecar inherits, no key can be read by others, not for a moment.
func TestUmask(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true, idle: true})
	var mu sync.Mutex
	looked := map[string]int{}
	w := fixture.StartWatch(t, func(_ uint32, path string) {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || strings.Contains(filepath.Base(path), "crt-list") {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		looked[filepath.Base(filepath.Dir(path))]++
		if mode := info.Mode().Perm(); mode&0o007 != 0 {
			t.Errorf("%s has mode %o", path, mode)
		}
	})
	for _, dir := range []string{c.crtDir(), c.temporaries(), c.store()} {
		must(t, w.Add(dir))
	}
	for _, kind := range []string{"issued", "order", "account"} {
		must(t, w.Add(filepath.Join(c.store(), kind)))
	}
	c.start(fixture.SidecarOptions{Through: []string{"sh", "-c", `umask 000; exec "$@"`, "sh"}})
	c.issue("shop", "shop.example.com")
	for range 5 {
		c.command("renew", "shop")
	}
	c.await(10*time.Second, c.settled)
	c.await(10*time.Second, func() error { // the store writes files when commits pause
		mu.Lock()
		defer mu.Unlock()
		for _, dir := range []string{"spoacme", ".spoacme", "store", "issued", "account"} {
			if looked[dir] == 0 {
				return fmt.Errorf("nothing was written in %s: %v", dir, looked)
			}
		}
		return nil
	})
	for _, path := range []string{c.s.Control(), c.s.State()} {
		info, err := os.Stat(path)
		must(t, err)
		if mode := info.Mode().Perm(); mode&0o007 != 0 {
			t.Errorf("%s has mode %o", path, mode)
		}
	}
}

// TestTemporaryFile: a crash leaves a temporary file. A HAProxy that loads a whole folder does not load it, and the
// next sidecar cleans it up.
func TestTemporaryFile(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		top, err := os.MkdirTemp("", "crt")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(top) })
		folder := filepath.Join(top, "etc", "certs")
		must(t, os.MkdirAll(folder, 0o755))
		c := newScene(t, sceneOptions{haproxy: fixture.HAProxyOptions{
			Version: version, Dir: top, Settings: map[string]string{"SPOACME_CERTS": "", "SPOACME_CERT_shop": ""},
			Edit: func(text string) string {
				return quickChecks(strings.Replace(text, "crt-list "+filepath.Join(top, "etc/spoacme/crt-list"), "crt "+folder+"/", 1))
			},
		}})
		c.issue("shop", "shop.example.com")
		temporaries := filepath.Join(folder, ".spoacme")
		trap := c.trap()
		w := fixture.StartWatch(t, func(uint32, string) { trap.spring() })
		must(t, w.Add(temporaries))
		c.command("renew", "--no-wait", "shop")
		must(t, trap.wait(t.Context()))
		left, err := os.ReadDir(temporaries)
		must(t, err)
		c.restarts()
		must(t, c.h.Reload(t.Context()))
		must(t, c.s.Restart())
		c.await(20*time.Second, func() error {
			again, err := os.ReadDir(temporaries)
			if err == nil && len(again) > 0 {
				err = fmt.Errorf("%s is left over", again[0].Name())
			}
			return errors.Join(err, c.serves("shop.example.com"))
		})
		t.Logf("left by the crash: %d files", len(left))
		if n := len(c.ca.IssuedFor(c.p, "shop.example.com")); n != 2 {
			t.Errorf("%d certificates", n)
		}
	})
}
