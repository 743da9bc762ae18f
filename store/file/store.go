// Package file is the store of a single node: a directory that one process has for itself. A record is the file
// <dir>/<kind>/<name>.json (0600 in 0700), so an operator can look at it, back it up, restore it and edit it.
//
// A commit is durable, and atomic across its records, when it is in <dir>/journal: a line that was synced. Readers see
// it from then on. When commits pause the files are written (temporary file, rename); when things are quiet they
// are synced and the journal is emptied. What is in the journal when a process starts is written again. Commits that
// arrive while the journal is being synced share the next sync.
//
// How a commit ends: an error before its journal line is whole on disk takes the line back, and the commit is refused.
// If even that fails the outcome is unknown, and nothing more is committed until the journal was replaced, so what is
// then read again holds. Once the line is on disk the commit is done, also when the files can't be written yet: reads are
// answered from memory and the writing is tried again.
package file

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/spoacme/spoacme/store"
)

// Options of a store. The zero value works.
type Options struct {
	Node      string        // what Barrier calls this process; default the host's name
	Sealer    store.Sealer  // default store.Plain: the directory is private
	Log       *slog.Logger  // default none
	ScanEvery time.Duration // how often to look for foreign edits; default 2 s

	quiet time.Duration // how long nothing is committed before the journal is emptied; default 1 s
}

// Store implements store.Store.
type Store struct {
	dir    string
	sealer store.Sealer
	log    *slog.Logger
	solo   store.Solo
	feed   store.Feed

	attachMu sync.Mutex
	lock     *flock.Flock
	lockInfo os.FileInfo

	mu      sync.RWMutex
	index   index
	pending map[store.Key][]byte // in the journal, but not yet a file; nil: not yet deleted

	// What follows belongs to the writer.
	applying  sync.RWMutex // held while files are written
	journal   journal
	unwritten atomic.Pointer[error] // see Reachable; may be read by others
	dirty     map[store.Key]bool    // written, but not yet synced
	failing   bool                  // the last checkpoint did
	fault     faultFunc
	quiet     time.Duration

	queue   chan *request
	closing chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

var errClosed = errors.New("the store is closed")

// Open opens the store in dir, which is created if need be. Only one process can have it open.
func Open(dir string, o Options) (*Store, error) {
	s, err := open(dir, o, func(string, string) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

func open(dir string, o Options, fault faultFunc) (*Store, error) {
	if o.Node == "" {
		o.Node, _ = os.Hostname()
	}
	if o.Sealer == nil {
		o.Sealer = store.Plain{}
	}
	s := &Store{
		dir:     dir,
		sealer:  o.Sealer,
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		solo:    store.Solo{Node: o.Node},
		index:   newIndex(rand.Text()[:8] + "-"),
		pending: map[store.Key][]byte{},
		dirty:   map[store.Key]bool{},
		fault:   fault,
		quiet:   cmp.Or(o.quiet, time.Second),
		journal: journal{path: filepath.Join(dir, "journal"), fault: fault},
		queue:   make(chan *request),
		closing: make(chan struct{}),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.lock, s.lockInfo, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		s.journal.close()
		_ = s.lock.Unlock()
		return nil, err
	}
	s.running.Go(s.write)
	s.running.Go(func() { s.watch(cmp.Or(o.ScanEvery, 2*time.Second)) })
	return s, nil
}

// start brings directory and index into order after the last process. On a full or read-only disk it goes on: what is
// there can be read, and every commit is refused.
func (s *Store) start() error {
	if err := s.cleanTemps(); err != nil {
		return err
	}
	for _, kind := range store.Kinds() {
		if err := s.scan(kind); err != nil {
			return err
		}
	}
	err := s.openJournal()
	if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		s.log.Error("open the store's journal: nothing can be stored", "folder", s.dir, "err", err)
		return nil
	}
	if err == nil {
		s.checkpoint()
	}
	return err
}

const lockName = "lock"

// lockDir takes the lock of a directory. The file says who has it.
func lockDir(dir string) (*flock.Flock, os.FileInfo, error) {
	path := filepath.Join(dir, lockName)
	lock := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDONLY), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		holder := "another process"
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 && len(b) < 20 {
			holder = "process " + strings.TrimSpace(string(b))
		}
		_ = lock.Close()
		return nil, nil, fmt.Errorf("%s has it open; stop that one, or give this one a folder of its own with SPOACME_STORE", holder)
	}
	// On a full disk the process is not named; that must not stop us.
	_ = os.WriteFile(path, fmt.Appendln(nil, os.Getpid()), 0o600)
	info, err := os.Stat(path)
	if err != nil {
		_ = lock.Unlock()
		return nil, nil, err
	}
	return lock, info, nil
}

// attached makes sure that the directory is still the one that we have locked. Restored from a backup it may be
// another one: that one is locked then. A directory that is gone or empty says nothing about what there is.
func (s *Store) attached() error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	info, err := os.Stat(filepath.Join(s.dir, lockName))
	if err == nil && os.SameFile(info, s.lockInfo) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil && !s.hasKinds() {
		return fmt.Errorf("the folder %s was emptied or unmounted; mount or restore it, or restart to begin with nothing", s.dir)
	}
	lock, info, err := lockDir(s.dir)
	if err != nil {
		return err
	}
	_ = s.lock.Unlock()
	s.lock, s.lockInfo = lock, info
	s.log.Warn("the store's folder was replaced, as by a restore", "folder", s.dir)
	return nil
}

func (s *Store) hasKinds() bool {
	for _, k := range store.Kinds() {
		if _, err := os.Stat(filepath.Join(s.dir, string(k))); err == nil {
			return true
		}
	}
	return false
}

func (s *Store) path(key store.Key) string {
	return filepath.Join(s.dir, string(key.Kind), key.Name+recordSuffix)
}

// watch looks for foreign edits until the store is closed, for at most 2 % of the time.
func (s *Store) watch(every time.Duration) {
	t := time.NewTimer(every)
	defer t.Stop()
	failed := false
	for {
		select {
		case <-s.closing:
			return
		case <-t.C:
		}
		took, err := s.scanAll()
		if err != nil && !failed {
			s.log.Error("look for changes in the store", "err", err)
		}
		failed = err != nil
		t.Reset(max(every, 50*took))
	}
}

// Follow implements store.Store.
func (s *Store) Follow(ctx context.Context, changed func(keys []store.Key), kinds ...store.Kind) error {
	return s.feed.Follow(ctx, changed, kinds...)
}

// Lead implements store.Store: it waits for nobody but another holder in this process.
func (s *Store) Lead(ctx context.Context) (store.Lease, error) { return s.solo.Lead(ctx) }

// Ack implements store.Store.
func (s *Store) Ack(ctx context.Context, generation uint64) error {
	return s.solo.Ack(ctx, generation)
}

// Barrier implements store.Store. The only node is this process.
func (s *Store) Barrier(ctx context.Context, generation uint64) ([]string, error) {
	return s.solo.Barrier(ctx, generation)
}

func (s *Store) closedError() error {
	select {
	case <-s.closing:
		return errClosed
	default:
		return nil
	}
}

// Close ends the lease and every Follow, finishes the commits under way, and unlocks the directory.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.solo.Close(errClosed)
		close(s.closing)
		s.running.Wait()
		s.feed.Close()
		s.journal.close()
		s.attachMu.Lock()
		defer s.attachMu.Unlock()
		_ = s.lock.Unlock()
	})
	return nil
}
