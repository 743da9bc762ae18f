package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spoacme/spoacme/store"
)

const (
	recordSuffix = ".json"
	tempPrefix   = ".tmp-"
	tempSuffix   = ".new"
)

// stamp tells versions of a file apart.
type stamp struct {
	inode uint64
	size  int64
	mtime int64
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = uint64(sys.Ino)
	}
	return s
}

// item is what is remembered of a record: not its content.
type item struct {
	stamp    stamp
	revision uint64
	checked  checked
}

// checked is what is known of a version of a record.
type checked byte

const (
	notChecked checked = iota
	isReadable
	isUnreadable
)

// index is every record, as last seen. Revisions count from a random start in every process, so that an old
// one never fits.
type index struct {
	boot  string
	last  uint64
	items map[store.Kind]map[string]item
}

func newIndex(boot string) index {
	x := index{boot: boot, items: map[store.Kind]map[string]item{}}
	for _, k := range store.Kinds() {
		x.items[k] = map[string]item{}
	}
	return x
}

func (x *index) get(key store.Key) item { return x.items[key.Kind][key.Name] }

func (x *index) revision(key store.Key) store.Revision {
	it := x.get(key)
	if it.revision == 0 {
		return ""
	}
	return store.Revision(x.boot + strconv.FormatUint(it.revision, 36))
}

// put remembers a new version.
func (x *index) put(key store.Key, s stamp, c checked) {
	x.last++
	x.items[key.Kind][key.Name] = item{s, x.last, c}
}

// stamp completes a version whose file has been written now.
func (x *index) stamp(key store.Key, s stamp) {
	it := x.get(key)
	it.stamp = s
	x.items[key.Kind][key.Name] = it
}

func (x *index) remove(key store.Key) { delete(x.items[key.Kind], key.Name) }

// note compares with what is on disk now (nil: nothing) and reports whether that is a change.
func (x *index) note(key store.Key, s *stamp) bool {
	it := x.get(key)
	switch {
	case s == nil && it.revision == 0, s != nil && it.revision != 0 && it.stamp == *s:
		return false
	case s == nil:
		x.remove(key)
	default:
		x.put(key, *s, notChecked)
	}
	return true
}

// check remembers whether a version can be read.
func (x *index) check(key store.Key, revision store.Revision, c checked) {
	if x.revision(key) == revision && revision != "" {
		it := x.get(key)
		it.checked = c
		x.items[key.Kind][key.Name] = it
	}
}

// look returns the stamp of a record's file, nil when there is none.
func (s *Store) look(key store.Key) (*stamp, error) {
	info, err := os.Lstat(s.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st := stampOf(info)
	return &st, nil
}

// refresh brings the index up to date for some keys and announces what changed without us.
func (s *Store) refresh(keys ...store.Key) error {
	var changed []store.Key
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		if len(changed) > 0 {
			s.feed.Announce(changed...)
		}
	}()
	for _, key := range keys {
		if _, ok := s.pending[key]; ok {
			continue
		}
		st, err := s.look(key)
		if err != nil {
			return err
		}
		if s.index.note(key, st) {
			changed = append(changed, key)
		}
	}
	return nil
}

// scanChunk is how many records are looked at while others wait.
const scanChunk = 256

// scan brings the index up to date for a kind.
func (s *Store) scan(kind store.Kind) error {
	keys, err := s.keysOnDisk(kind)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(keys))
	for _, k := range keys {
		there[k.Name] = true
	}
	s.mu.RLock()
	for name := range s.index.items[kind] {
		if !there[name] {
			keys = append(keys, store.Key{Kind: kind, Name: name})
		}
	}
	s.mu.RUnlock()
	for len(keys) > 0 {
		n := min(scanChunk, len(keys))
		if err := s.refresh(keys[:n]...); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (s *Store) keysOnDisk(kind store.Kind) ([]store.Key, error) {
	d, err := os.Open(filepath.Join(s.dir, string(kind)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	keys := make([]store.Key, 0, len(names))
	for _, n := range names {
		if name, ok := strings.CutSuffix(n, recordSuffix); ok && store.ValidName(name) == nil {
			keys = append(keys, store.Key{Kind: kind, Name: name})
		}
	}
	return keys, nil
}

// scanAll looks for foreign edits and returns how long that took.
func (s *Store) scanAll() (time.Duration, error) {
	start := time.Now()
	if err := s.attached(); err != nil {
		return time.Since(start), err
	}
	for _, kind := range store.Kinds() {
		if err := s.scan(kind); err != nil {
			return time.Since(start), err
		}
	}
	return time.Since(start), nil
}
