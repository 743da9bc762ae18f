package dataplane

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestRealDisk runs TestDiskInside in a mount namespace of its own, where it may mount small and read-only disks.
func TestRealDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskInside$", "-test.v")
	cmd.Env = append(os.Environ(), "DATAPLANE_TEST_MOUNTS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestDiskInside")) {
		t.Fatalf("%v (user namespaces must be allowed)\n%s", err, out)
	}
}

func TestDiskInside(t *testing.T) {
	if os.Getenv("DATAPLANE_TEST_MOUNTS") == "" {
		return // TestRealDisk runs it
	}
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		mount(t, s.crtDir, "size=64k")
		s.write("crt/crt-list", nil)
		s.start()
		h := s.open()
		old := c.issue(t, leaf{names: []string{"shop.example"}, age: 3 * time.Hour})
		deploy(t, h, "shop", old)
		file := filepath.Join(s.crtDir, "shop.pem")

		fillDisk(t, s.crtDir)
		renewed := c.issue(t, leaf{names: []string{"shop.example"}, age: 2 * time.Hour})
		got, err := h.Deploy(t.Context(), Unit{Name: "shop", Bundle: renewed})
		wantServedNotStored(t, s, got, err, "disk full; free space, HAProxy keeps the old file until then", renewed.Fingerprint)
		added := c.issue(t, leaf{names: []string{"added.example"}, age: 2 * time.Hour})
		_, err = h.Deploy(t.Context(), Unit{Name: "added", Bundle: added})
		if !errors.Is(err, syscall.ENOSPC) || s.serves("added.example") != added.Fingerprint {
			t.Fatalf("a new one on a full disk: %v, served %t", err, s.serves("added.example") == added.Fingerprint)
		}
		if text := string(must(os.ReadFile(file))); text != string(old.PEM()) {
			t.Fatal("the old file is not whole")
		}
		if text := string(must(os.ReadFile(s.crtList))); text != file+"\n" {
			t.Fatalf("crt-list has %q", text)
		}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(s.crtDir, tmpDir, "filler")); err != nil {
			t.Fatal(err)
		}
		deploy(t, h, "shop", renewed)
		deploy(t, h, "added", added)
		if text := string(must(os.ReadFile(s.crtList))); text != file+"\n"+filepath.Join(s.crtDir, "added.pem")+"\n" {
			t.Fatalf("crt-list has %q", text)
		}

		if err := syscall.Mount("", s.crtDir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		last := c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour})
		_ = h.Close()
		h = s.open() // also locks there
		got, err = h.Deploy(t.Context(), Unit{Name: "shop", Bundle: last})
		wantServedNotStored(t, s, got, err, "read-only file system; mount it read-write, or allow it (ReadWritePaths="+s.crtDir+")", last.Fingerprint)
		if !fileHas(s, "shop", renewed) {
			t.Fatal("the old file is not whole")
		}
	})
}

func wantServedNotStored(t *testing.T, s *site, got Served, err error, text, fingerprint string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v, want %s", err, text)
	}
	if got.Fingerprint != fingerprint || s.serves("shop.example") != fingerprint {
		t.Fatal("not served in spite of the disk")
	}
}

func mount(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fillDisk writes until nothing fits any more; the filler lies where HAProxy does not look.
func fillDisk(t *testing.T, dir string) {
	t.Helper()
	f := must(os.Create(filepath.Join(dir, tmpDir, "filler")))
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 1024)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			return
		}
	}
}

// TestKeyNeverReadable watches the directory during writes under every umask.
func TestKeyNeverReadable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o2775); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "shop.pem")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, d := range []string{dir, filepath.Join(dir, tmpDir)} {
				entries, _ := os.ReadDir(d)
				for _, e := range entries {
					if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&^0o640 != 0 {
						t.Errorf("%s has mode %o", e.Name(), fi.Mode().Perm())
						return
					}
				}
			}
		}
	})
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	for i, umask := range []int{0, 0o022, 0o077, 0o777, 0} {
		syscall.Umask(umask)
		for range 20 {
			if err := writeFile(path, []byte("key"), keyMode); err != nil {
				t.Fatalf("umask %o: %v", umask, err)
			}
		}
		fi := must(os.Stat(path))
		if got := fi.Mode().Perm(); got != 0o640 && i != 4 {
			t.Errorf("umask %o: mode %o", umask, got)
		}
		if i == 3 { // what somebody made stricter stays so
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if i == 4 && fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %o instead of 0600", fi.Mode().Perm())
		}
	}
	close(stop)
	wg.Wait()
	if entries := must(os.ReadDir(filepath.Join(dir, tmpDir))); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestDiskError(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "disk full; free space, HAProxy keeps the old file until then"},
		{syscall.EDQUOT, "disk full; free space"},
		{syscall.EROFS, "read-only file system; mount it read-write, or allow it (ReadWritePaths=/etc/haproxy/spoacme)"},
		{fs.ErrPermission, "give this user write permission there"},
		{fs.ErrNotExist, "directory /etc/haproxy/spoacme does not exist; create it"},
		{syscall.EIO, "write /etc/haproxy/spoacme/shop.pem: input/output error"},
	}
	for _, tt := range tests {
		if got := diskError("/etc/haproxy/spoacme/shop.pem", tt.err); got == nil || !strings.Contains(got.Error(), tt.want) {
			t.Errorf("%v: %v, want %s", tt.err, got, tt.want)
		}
	}
	if err := diskError("x", nil); err != nil {
		t.Error(err)
	}
}

// TestRealCrashLeftovers: what a crash left is never loaded and is swept away.
func TestRealCrashLeftovers(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := newSite(t, version, "crt DIR/crt/"), newCA(t)
		s.write("crt/0default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
		if err := os.Mkdir(filepath.Join(s.crtDir, tmpDir), 0o700); err != nil {
			t.Fatal(err)
		}
		s.write("crt/.spoacme/.shop.pem12345", []byte("-----BEGIN PRI"))
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		s.start()
		deploy(t, s.open(), "shop", c.issue(t, leaf{names: []string{"shop.example"}}))
		if entries := must(os.ReadDir(filepath.Join(s.crtDir, tmpDir))); len(entries) != 0 {
			t.Errorf("left behind: %v", entries)
		}
	})
}

// TestRealAlwaysValid runs haproxy -c while certificates are added, renewed and removed.
func TestRealAlwaysValid(t *testing.T) {
	for _, bind := range []string{"crt DIR/default.pem crt-list DIR/crt/crt-list", "crt DIR/crt/"} {
		each(t, func(t *testing.T, version string) {
			s, c := newSite(t, version, bind), newCA(t)
			s.write("default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
			if strings.Contains(bind, "crt-list") {
				s.write("crt/crt-list", nil)
			} else {
				s.write("crt/0default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
			}
			s.start()
			h := s.open(func(c *Config) { c.Logger = nil })
			stop := make(chan struct{})
			var wg sync.WaitGroup
			checks := 0
			config := s.save()
			wg.Go(func() {
				for ; ; checks++ {
					select {
					case <-stop:
						return
					default:
					}
					if out, err := exec.Command(s.binary(), "-c", "-f", config).CombinedOutput(); err != nil {
						t.Errorf("haproxy -c: %v\n%s", err, out)
						return
					}
				}
			})
			deploy(t, h, "first", c.issue(t, leaf{names: []string{"first.example"}}))
			for i := range 125 {
				name := []string{"a", "b", "c"}[i%3]
				if i%4 == 3 && strings.Contains(bind, "crt-list") { // see removeFiles
					if err := h.Remove(t.Context(), name, false); err != nil {
						t.Fatal(err)
					}
					continue
				}
				deploy(t, h, name, c.issue(t, leaf{names: []string{name + ".example"}, age: time.Duration(200-i) * time.Minute}))
			}
			close(stop)
			wg.Wait()
			t.Logf("%d times haproxy -c during 125 writes", checks)
		})
	}
}
