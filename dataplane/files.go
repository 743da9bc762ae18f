package dataplane

import (
	"bytes"
	"crypto/sha1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"

	"github.com/spoacme/spoacme/store"
)

const (
	// tmpDir is where files are written before they are renamed into their directory. HAProxy ignores a
	// subdirectory of a certificate directory; a stray file in it would stop HAProxy from starting.
	tmpDir      = ".spoacme"
	keyMode     = 0o640
	maxPEM      = 1 << 20
	maxListFile = 64 << 20
)

// stamp tells whether a file is the one that was looked at before.
type stamp struct {
	mtime       time.Time
	size        int64
	inode       uint64
	fingerprint string
}

func stampOf(fi fs.FileInfo) stamp {
	s := stamp{mtime: fi.ModTime(), size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

// same ignores the fingerprint.
func (s stamp) same(t stamp) bool {
	return s.mtime.Equal(t.mtime) && s.size == t.size && s.inode == t.inode
}

// writeFile replaces path by data, wholly or not at all; the data is on disk when it returns. The file is
// never readable for others, nor for a group that is not the directory's (or the old file's).
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := stage(path, data, mode)
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if err := f.CloseAtomicallyReplace(); err != nil {
		return diskError(path, err)
	}
	return diskError(path, syncDir(filepath.Dir(path)))
}

// stage writes data, to the disk, into a temporary file that is to replace path.
func stage(path string, data []byte, mode fs.FileMode) (*renameio.PendingFile, error) {
	dir := filepath.Dir(path)
	tmp := tmpOf(dir)
	if err := os.Mkdir(tmp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, diskError(path, err)
	}
	like, err := os.Stat(path)
	if err != nil {
		like, err = os.Stat(dir)
	} else {
		mode &= like.Mode().Perm() | 0o600
	}
	if err != nil {
		return nil, diskError(path, err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(tmp), renameio.WithPermissions(0o600))
	if err != nil {
		return nil, diskError(path, err)
	}
	if err := fill(f, data, mode, like); err != nil {
		return nil, diskError(path, errors.Join(err, f.Cleanup()))
	}
	return f, nil
}

func fill(f *renameio.PendingFile, data []byte, mode fs.FileMode, like fs.FileInfo) error {
	st, ok := like.Sys().(*syscall.Stat_t)
	if chowned := ok && f.Chown(-1, int(st.Gid)) == nil; !chowned && mode&0o007 == 0 {
		mode &^= 0o070
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// tmpOf is the directory of temporary files for a directory.
func tmpOf(dir string) string {
	if filepath.Base(dir) == tmpDir {
		return dir
	}
	return filepath.Join(dir, tmpDir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// diskError says what to do. It is nil when err is.
func diskError(path string, err error) error {
	dir := filepath.Dir(path)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("write %s: disk full; free space, HAProxy keeps the old file until then: %w", path, syscall.ENOSPC)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("write %s: read-only file system; mount it read-write, or allow it (ReadWritePaths=%s): %w", path, dir, syscall.EROFS)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("write %s: %s is %s; give this user write permission there: %w", path, dir, Ownership(dir), fs.ErrPermission)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("write %s: directory %s does not exist; create it", path, dir)
	}
	return fmt.Errorf("write %s: %w", path, err)
}

// readFile reads at most limit bytes.
func readFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read %s: not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("read %s: larger than %d bytes", path, limit)
	}
	return b, fi, err
}

// LeafFingerprint returns the SHA-1 of the first certificate of a PEM file as HAProxy prints it, or "".
func LeafFingerprint(text []byte) string {
	for len(text) > 0 {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return ""
		}
		if b.Type == "CERTIFICATE" {
			return fmt.Sprintf("%X", sha1.Sum(b.Bytes))
		}
	}
	return ""
}

// current reports whether the certificate's file was seen to hold the leaf with this fingerprint and was not
// touched since. It reads the file once and then only its inode.
func (h *HAProxy) current(name, path, fingerprint string) bool {
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	now := stampOf(fi)
	h.filesMu.Lock()
	old := h.files[name]
	h.filesMu.Unlock()
	if !old.same(now) || old.fingerprint == "" {
		text, fi, err := readFile(path, maxPEM)
		if err != nil {
			return false
		}
		old.fingerprint = LeafFingerprint(text)
		h.note(name, fi, old.fingerprint)
	}
	return old.fingerprint == fingerprint
}

// stored is what a certificate's file held.
type stored struct {
	changed bool   // something else: it is to be written
	was     []byte // nil when there was none
	fresh   bool   // there was no file
}

// lookPEM compares the file with the bundle that is to be in it. It is ErrHeld when the file has something better.
func (h *HAProxy) lookPEM(name, path string, b *store.Bundle) (stored, error) {
	was, fi, err := readFile(path, maxPEM)
	switch {
	case err == nil && bytes.Equal(was, b.PEM()):
		h.note(name, fi, b.Fingerprint)
		return stored{}, nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		old, _ := store.ParseBundle(was)
		if worse := b.Worse(old, time.Now()); worse != nil && old == nil {
			return stored{}, heldBack{fmt.Errorf("%w; renew it", worse)}
		} else if worse != nil {
			return stored{}, fmt.Errorf("%w in %s: %w; run 'spoacme renew %s', or remove that file", ErrHeld, path, worse, name)
		}
		return stored{changed: true, was: was, fresh: was == nil}, nil
	case errors.Is(err, fs.ErrPermission):
		return stored{}, fmt.Errorf("read %s (%s): permission denied; what is there is not known, so it is not replaced: make it readable for this user", path, Ownership(path))
	}
	return stored{}, err
}

func (h *HAProxy) note(name string, fi fs.FileInfo, fingerprint string) {
	s := stampOf(fi)
	s.fingerprint = fingerprint
	h.filesMu.Lock()
	defer h.filesMu.Unlock()
	h.files[name] = s
}

func (h *HAProxy) forget(name string) {
	h.filesMu.Lock()
	defer h.filesMu.Unlock()
	delete(h.files, name)
}

// lockDir makes sure that no other spoacme looks after the same directory. The lock is on the directory itself,
// so that it works on a disk that is full or read-only.
func (h *HAProxy) lockDir(dir string) error {
	if h.locked == dir {
		return nil
	}
	l := flock.New(dir, flock.SetFlag(os.O_RDONLY))
	ok, err := l.TryLock()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("lock %s: the directory does not exist; create it and let this user write to it", dir)
		}
		return fmt.Errorf("lock %s (%s): %w", dir, Ownership(dir), err)
	}
	if !ok {
		return fmt.Errorf("%w, in %s; stop the other one, or give this one a directory of its own with SPOACME_CRT_DIR", ErrLocked, dir)
	}
	if h.lock != nil {
		_ = h.lock.Unlock()
	}
	h.lock, h.locked = l, dir
	h.refused, h.wrecked = h.loadVerdicts()
	h.sweep(dir)
	return nil
}

// sweep removes what a crash left in the directory of temporary files.
func (h *HAProxy) sweep(dir string) {
	entries, err := os.ReadDir(filepath.Join(dir, tmpDir))
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), ".") {
			_ = os.Remove(filepath.Join(dir, tmpDir, e.Name()))
		}
	}
}

func removePEM(path string) error {
	err := os.Remove(path)
	if err == nil {
		return diskError(path, syncDir(filepath.Dir(path)))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return diskError(path, err)
}
