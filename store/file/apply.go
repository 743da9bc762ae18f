package file

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spoacme/spoacme/store"
)

// apply makes what is in the journal visible. The files are written by writeOut, so that records that change often, or
// come and go, are written once.
func (s *Store) apply(writes map[store.Key][]byte) {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	for key, data := range writes {
		s.pending[key] = data
		if data == nil {
			s.index.remove(key)
		} else {
			s.index.put(key, stamp{}, isReadable)
		}
	}
	s.mu.Unlock()
	s.feed.Announce(slices.Collect(maps.Keys(writes))...)
}

// writeOut writes the files of all that is pending, removals first: they make room on a full disk. It stops at the
// first error; what is left stays pending.
func (s *Store) writeOut() error {
	s.mu.RLock()
	keys := slices.Collect(maps.Keys(s.pending))
	slices.SortFunc(keys, func(a, b store.Key) int { return len(s.pending[a]) - len(s.pending[b]) })
	s.mu.RUnlock()
	for _, key := range keys {
		if err := s.writeOne(key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) writeOne(key store.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := s.pending[key]
	st, err := s.replaceFile(key, data)
	if err != nil {
		return err
	}
	delete(s.pending, key)
	s.dirty[key] = true
	if data != nil {
		s.index.stamp(key, st)
	}
	return nil
}

// replaceFile writes or (data nil) removes the file of a record, not synced.
func (s *Store) replaceFile(key store.Key, data []byte) (stamp, error) {
	path := s.path(key)
	if data == nil {
		err := do(s.fault, "remove", path, func() error { return os.Remove(path) })
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return stamp{}, err
	}
	temp := filepath.Join(filepath.Dir(path), tempPrefix+key.Name)
	st, err := s.writeTemp(temp, data)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.makeDir(key.Kind); err == nil {
			st, err = s.writeTemp(temp, data)
		}
	}
	if err == nil {
		err = do(s.fault, "rename", path, func() error { return os.Rename(temp, path) })
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return st, err
}

// faultFunc is told of every step that changes something on disk, before it, and can make it fail.
type faultFunc func(step, path string) error

// do makes one step, unless a test makes it fail.
func do(fault faultFunc, step, path string, f func() error) error {
	if err := fault(step, path); err != nil {
		return err
	}
	return f()
}

func (s *Store) writeTemp(temp string, data []byte) (stamp, error) {
	if err := s.fault("create", temp); err != nil {
		return stamp{}, err
	}
	_ = os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return stamp{}, err
	}
	defer f.Close()
	if err := do(s.fault, "write", temp, func() error { _, err := f.Write(data); return err }); err != nil {
		return stamp{}, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != 0o600 { // an odd umask
		err = f.Chmod(0o600)
	}
	if err != nil {
		return stamp{}, err
	}
	return stampOf(info), nil
}

func (s *Store) makeDir(kind store.Kind) error {
	path := filepath.Join(s.dir, string(kind))
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(path, 0o700)
}

// cleanTemps removes what a crash left behind.
func (s *Store) cleanTemps() error {
	_ = os.Remove(s.journal.path + tempSuffix)
	for _, kind := range store.Kinds() {
		dir := filepath.Join(s.dir, string(kind))
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), tempPrefix) {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
	return nil
}

// openJournal opens the journal and applies what is in it.
func (s *Store) openJournal() error {
	batches, rest, err := s.journal.open()
	if rest > 0 {
		s.log.Warn("the store's journal ends with what was never acknowledged; it is dropped", "folder", s.dir, "bytes", rest)
	}
	writes := map[store.Key][]byte{}
	for _, b := range batches {
		for _, w := range b.Writes {
			if validWrite(w) {
				writes[w.Key] = w.Data
			}
		}
	}
	if len(writes) > 0 {
		s.log.Info("the store's journal is written to its records", "folder", s.dir, "records", len(writes))
		s.apply(writes)
	}
	if err != nil {
		return err
	}
	return syncPath(s.dir)
}

func validWrite(w store.Write) bool {
	return slices.Contains(store.Kinds(), w.Key.Kind) && store.ValidName(w.Key.Name) == nil
}

// checkpoint writes what is pending, syncs what was written and empties the journal. It reports whether it did.
func (s *Store) checkpoint() bool {
	err := s.settle()
	if err == nil {
		err = s.journal.reset()
	}
	return s.reported("sync records", err)
}

func (s *Store) settle() error {
	if err := s.writeOut(); err != nil {
		return err
	}
	if len(s.dirty) == 0 {
		return nil
	}
	if err := s.syncFiles(); err != nil {
		return err
	}
	clear(s.dirty)
	return nil
}

// syncers is how many files are synced at once: file systems join such syncs.
const syncers = 16

// syncFiles syncs all that is dirty. After a failed sync the kernel forgets what it could not write, and what the file reads as
// then is not what was written: such a record becomes pending with what the journal has of it, and is written anew.
func (s *Store) syncFiles() error {
	dirs := map[string]bool{s.dir: true}
	keys := slices.Collect(maps.Keys(s.dirty))
	errs := make([]error, len(keys))
	var wg sync.WaitGroup
	for first := range min(syncers, len(keys)) {
		wg.Go(func() {
			for i := first; i < len(keys); i += syncers {
				errs[i] = do(s.fault, "sync", s.path(keys[i]), func() error { return syncPath(s.path(keys[i])) })
			}
		})
	}
	wg.Wait()
	var failed []store.Key
	for i, key := range keys {
		dirs[filepath.Dir(s.path(key))] = true
		if errs[i] != nil {
			failed = append(failed, key)
		}
	}
	if len(failed) > 0 {
		errs = append(errs, s.writeAnew(failed))
	}
	for dir := range dirs {
		errs = append(errs, do(s.fault, "sync folder", dir, func() error { return syncPath(dir) }))
	}
	return errors.Join(errs...)
}

// writeAnew makes records pending that the journal has, as it has all that is dirty.
func (s *Store) writeAnew(keys []store.Key) error {
	writes, err := s.journal.writes()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		data, logged := writes[key]
		if _, newer := s.pending[key]; logged && !newer {
			s.pending[key] = data
		}
	}
	return nil
}

// syncPath syncs a file or folder if it is there.
func syncPath(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
