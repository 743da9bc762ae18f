package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spoacme/spoacme/store"
)

// A HAProxy that refuses one file on its disk does not start at all. So what it refuses must not be there, and only
// HAProxy can tell what it refuses:
//   - While it runs it is asked first; what it has not taken is not written.
//   - What is written without asking, because HAProxy is down or only a reload can give it the certificate, does not destroy
//     what it replaces: that is kept as "previous" until HAProxy has taken the new one, and put back when it refuses it.
//   - What it has refused is remembered, over restarts of both, and not written when HAProxy is down.

// barred reports whether HAProxy can't be given the certificate while it runs: only a reload makes it read the file.
func barred(err error) bool {
	return (errors.Is(err, ErrTooBig) || errors.Is(err, errWrecked) || has(err, "permission denied")) && !errors.Is(err, errContent)
}

// storeAll completes the PEM files of what HAProxy has taken, and writes those of what it can't be asked about.
func (h *HAProxy) storeAll(jobs []*job, down error) {
	var todo []*job
	for _, j := range jobs {
		blind := down != nil && j.err == nil || barred(j.err)
		if fp := h.refused[j.name]; blind && fp != "" && fp == j.want {
			j.err = fmt.Errorf("%w: it did when it was last asked, so the file is not written while it can't be; renew it", errContent)
		}
		if j.disk == nil && (j.placed || j.stored.changed && (j.err == nil || barred(j.err))) {
			todo = append(todo, j)
		}
	}
	atOnce(todo, func(j *job) { j.disk = h.storeOne(j, down == nil && j.err == nil) })
	for _, j := range jobs {
		if j.staged != nil {
			_ = j.staged.Cleanup()
		}
		switch {
		case j.disk != nil:
		case barred(j.err):
			j.err = fmt.Errorf("%w; the file is written, so a reload takes it too", j.err)
		case down == nil && j.err == nil:
			h.accepted(j)
		}
	}
}

func (h *HAProxy) storeOne(j *job, taken bool) error {
	if !taken && !j.placed && !j.stored.fresh {
		if err := keepPrevious(j.file, j.stored.was); err != nil {
			return err
		}
	}
	if j.staged == nil { // HAProxy has changed its mind
		var err error
		if j.staged, err = stage(j.file, j.b.PEM(), keyMode); err != nil {
			return err
		}
	}
	if h.placePEM(j); j.disk != nil {
		return j.disk
	}
	if fi, err := os.Stat(j.file); err == nil {
		h.note(j.name, fi, j.want)
	}
	return diskError(j.file, syncDir(filepath.Dir(j.file)))
}

// placePEM renames the staged file. That it is durable is for storeAll to see to.
func (h *HAProxy) placePEM(j *job) {
	if j.staged == nil || j.placed {
		return
	}
	h.forget(j.name)
	if err := j.staged.CloseAtomicallyReplace(); err != nil {
		j.disk = diskError(j.file, err)
		return
	}
	j.placed = true
}

// previousOf is where the file that HAProxy took last is kept.
func previousOf(file string) string {
	return filepath.Join(filepath.Dir(file), tmpDir, filepath.Base(file)+".previous")
}

// keepPrevious keeps what a file held. One that is kept already stays: what came after it was not taken either.
func keepPrevious(file string, was []byte) error {
	previous := previousOf(file)
	if _, err := os.Lstat(previous); err == nil {
		return nil
	}
	return writeFile(previous, was, 0o600)
}

// accepted forgets what was for the case that HAProxy refuses the certificate.
func (h *HAProxy) accepted(j *job) {
	_ = os.Remove(previousOf(j.file))
	h.remember(j.name, "")
}

// refuse remembers that HAProxy does not want the certificate, and takes it off the disk if it is there: the previous one
// comes back. Without one, what HAProxy runs without goes altogether.
func (h *HAProxy) refuse(p Place, j *job) error {
	h.remember(j.name, j.want)
	if j.stored.changed || j.disk != nil { // the file does not hold it
		return nil
	}
	was, _, err := readFile(previousOf(j.file), maxPEM)
	switch {
	case err == nil:
		return h.putBack(j, was)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case j.before.Status == "Used":
		return fmt.Errorf("%s holds it, and nothing else is known that HAProxy would start with; renew it", j.file)
	case p.Directory():
		return removePEM(j.file)
	}
	if err := h.list.load(p.CrtList); err != nil || !h.list.has(j.file) {
		return err
	}
	return h.removeFiles(p, j.file)
}

func (h *HAProxy) putBack(j *job, was []byte) error {
	h.forget(j.name)
	if err := writeFile(j.file, was, keyMode); err != nil {
		return err
	}
	return os.Remove(previousOf(j.file))
}

// remember keeps which certificate of this name HAProxy has refused last; none when it has taken one since.
func (h *HAProxy) remember(name, fingerprint string) {
	if h.refused[name] == fingerprint {
		return
	}
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	h.refused[name] = fingerprint
	if fingerprint == "" {
		delete(h.refused, name)
	}
	if err := h.writeCache(func(c *cache) { c.Refused = h.refused }); err != nil {
		h.log.Warn("could not keep which certificates HAProxy refuses", "err", err)
	}
}

// errWrecked marks a HAProxy that must not be given certificates until it is reloaded.
var errWrecked = errors.New("HAProxy would not survive it")

// survives reports whether HAProxy goes on after it refused a commit. 2.2 goes on holding the transaction, which it has
// freed: the next command about it, abort or set, ends HAProxy.
func survives(p Process) bool { return p.AtLeast(2, 6) }

// spared is why HAProxy is not given a certificate, for its own sake.
func (h *HAProxy) spared(p Process, file string, b *store.Bundle) error {
	switch {
	case survives(p):
		return nil
	case h.refused[strings.TrimSuffix(filepath.Base(file), ".pem")] == b.Fingerprint:
		return fmt.Errorf("%w: it did before, and HAProxy %s is not asked twice; renew it", errContent, p.Version)
	case h.wrecked.same(p):
		return fmt.Errorf("%w: HAProxy %s has refused a certificate since its last reload; reload it", errWrecked, p.Version)
	}
	return nil
}

// wreck remembers that the process must not be given certificates, also for a sidecar that is started later.
func (h *HAProxy) wreck(p Process) {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	h.wrecked = p
	if err := h.writeCache(func(c *cache) { c.Wrecked = p }); err != nil {
		h.log.Warn("could not keep that HAProxy must be reloaded before it is given a certificate", "err", err)
	}
}
