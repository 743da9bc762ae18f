package spoa

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Listen opens the address that the server line of HAProxy's configuration
// names: host:port, or unix@/path. The socket of a path has mode 0660. A
// socket that a dead process left behind is replaced, a live one is not, nor
// is anything that is not a socket. Errors end with what to do.
func Listen(addr string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, "unix@"); ok {
		ln, err := listenUnix(path)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return ln, nil
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("listen on %q: %w; give host:port or unix@/path, as in HAProxy's server line", addr, err)
	}
	ln, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w; stop the other program (ss -ltnp shows it) or choose another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w; choose an address of this machine, such as 127.0.0.1:9765", err)
	default:
		return nil, fmt.Errorf("%w; choose another address", err)
	}
}

// maxSocketPath is the longest path of a Unix socket, less the suffix of its
// temporary name.
const maxSocketPath = 107 - len(newSuffix)

const newSuffix = ".new"

// listenUnix makes the socket under a temporary name and renames it when it
// has its mode, so that it is never open to others and takes the place of a
// stale one in one step.
func listenUnix(path string) (net.Listener, error) {
	if !strings.HasPrefix(path, "/") || len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path must be absolute and at most %d bytes long; choose another", maxSocketPath)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	temp := path + newSuffix
	if err := vacant(temp); err != nil {
		return nil, err
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; give this user write access to the folder", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w; make the folder and give this user write access to it", err)
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o660); err == nil {
		err = os.Rename(temp, path)
	}
	var made fs.FileInfo
	if err == nil {
		made, err = os.Lstat(path)
	}
	if err != nil {
		_ = ln.Close()      // the first error is the one that counts
		_ = os.Remove(temp) // or it has been renamed
		return nil, fmt.Errorf("%w; give this user write access to the folder", err)
	}
	return &unixListener{UnixListener: ln, path: path, made: made}, nil
}

// vacant reports an error if a socket must not be put at path.
func vacant(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%w; give this user access to the folder", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way and is not a socket; remove it or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close() // only whether somebody answers is of interest
		return errors.New("another process answers there; stop it (ss -xlp shows it) or choose another path")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return fmt.Errorf("cannot tell whether the socket is in use: %w; remove it if nobody uses it", err)
	}
}

// unixListener removes its socket when it is closed, unless another has taken
// its place.
type unixListener struct {
	*net.UnixListener
	path string
	made fs.FileInfo
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
		return os.Remove(l.path)
	}
	return nil
}

// Addr names the socket as HAProxy's peers find it.
func (l *unixListener) Addr() net.Addr {
	return &net.UnixAddr{Name: l.path, Net: "unix"}
}
