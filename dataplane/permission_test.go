package dataplane

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPermission runs TestPermissionInside as a user without privileges, also when the tests run as root.
func TestPermission(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestPermissionInside$", "-test.v")
	cmd.Env = append(os.Environ(), "DATAPLANE_TEST_USER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestPermissionInside")) {
		t.Fatalf("%v (user namespaces must be allowed)\n%s", err, out)
	}
}

func TestPermissionInside(t *testing.T) {
	if os.Getenv("DATAPLANE_TEST_USER") == "" {
		return // TestPermission runs it
	}
	socket := serve(t, func(net.Conn) {})
	dir := filepath.Dir(socket)
	look := func(want string) {
		t.Helper()
		_, err := openAt(t, socket).Process(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(socket, 0)
	look("write `mode 660 group GROUP` on the `stats socket` line, with a group of this user, and restart HAProxy")
	chmod(socket, 0o060)
	look("; join group ")
	chmod(socket, 0o660)
	chmod(dir, 0)
	look("permission denied at " + dir + " (")
	chmod(dir, 0o700)

	crt := filepath.Join(dir, "crt")
	if err := os.Mkdir(crt, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(crt, "x.pem"), []byte("x"), keyMode); err == nil || !strings.Contains(err.Error(), "give this user write permission there") {
		t.Errorf("a folder without write permission: %v", err)
	}
}
