package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/spoacme/spoacme/store"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	e, err := s.get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrUnreadable) {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	return e, err
}

func (s *Store) get(ctx context.Context, key store.Key) (store.Entry, error) {
	if err := cmp.Or(ctx.Err(), s.closedError()); err != nil {
		return store.Entry{}, err
	}
	data, revision, err := s.read(key)
	if err == nil && data == nil {
		err = cmp.Or(s.attached(), store.ErrAbsent)
	}
	if err != nil && !errors.Is(err, store.ErrUnreadable) {
		return store.Entry{}, err
	}
	e := store.Entry{Key: key, Revision: revision}
	if err == nil {
		e.Record, err = store.Decode(key, data, s.sealer)
	}
	s.remember(key, revision, err)
	return e, err
}

// remember keeps whether a version of a record could be read.
func (s *Store) remember(key store.Key, revision store.Revision, err error) {
	c := isReadable
	if err != nil {
		c = isUnreadable
	}
	s.mu.RLock()
	known := s.index.get(key).checked == c
	s.mu.RUnlock()
	if !known {
		s.mu.Lock()
		s.index.check(key, revision, c)
		s.mu.Unlock()
	}
}

// read returns a record's bytes, nil when there is none, and the revision that they are.
func (s *Store) read(key store.Key) ([]byte, store.Revision, error) {
	if _, ok := s.index.items[key.Kind]; !ok || store.ValidName(key.Name) != nil {
		return nil, "", nil
	}
	s.mu.RLock()
	data, st, err := s.load(key)
	known := s.known(key, st)
	revision := s.index.revision(key)
	s.mu.RUnlock()
	if known || overloaded(err) {
		return data, revision, err
	}
	s.mu.Lock()
	data, st, err = s.load(key)
	changed := !s.known(key, st) && !overloaded(err) && s.index.note(key, st)
	revision = s.index.revision(key)
	s.mu.Unlock()
	if changed {
		s.feed.Announce(key)
	}
	return data, revision, err
}

// known reports whether the index has the version with this stamp. s.mu is held.
func (s *Store) known(key store.Key, st *stamp) bool {
	it := s.index.get(key)
	if _, ok := s.pending[key]; ok {
		return true
	}
	if st == nil {
		return it.revision == 0
	}
	return it.revision != 0 && it.stamp == *st
}

// load reads a record. s.mu is held.
func (s *Store) load(key store.Key) ([]byte, *stamp, error) {
	if data, ok := s.pending[key]; ok {
		return data, nil, nil
	}
	data, st, err := readFile(s.path(key))
	if err != nil && !overloaded(err) {
		if st == nil {
			st, _ = s.look(key)
		}
		err = fmt.Errorf("%w %s: %w", store.ErrUnreadable, key, err)
	}
	return data, st, err
}

// readFile reads a regular file of a record's size. All results are nil when there is no file.
func readFile(path string) ([]byte, *stamp, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	st := stampOf(info)
	switch {
	case !info.Mode().IsRegular():
		return nil, &st, errors.New("not a regular file")
	case info.Size() > store.MaxRecordBytes:
		return nil, &st, fmt.Errorf("%d bytes, the limit is %d", info.Size(), store.MaxRecordBytes)
	}
	data := make([]byte, info.Size())
	n, err := io.ReadFull(f, data)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n:n], &st, err
}

// overloaded errors say nothing about a record.
func overloaded(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, kind store.Kind) (store.Listing, error) {
	return s.listAs(ctx, kind, func(store.Record) {})
}

// ListFacts lists without chains and private keys; see store.ListFacts.
func (s *Store) ListFacts(ctx context.Context, kind store.Kind) (store.Listing, error) {
	return s.listAs(ctx, kind, store.DropPEM)
}

// listAs calls trim with every record as soon as it is read.
func (s *Store) listAs(ctx context.Context, kind store.Kind, trim func(store.Record)) (store.Listing, error) {
	list, err := s.list(ctx, kind, trim)
	if err != nil {
		return store.Listing{}, fmt.Errorf("list %s: %w", kind, err)
	}
	return list, nil
}

// list reads without holding up commits, and then again what has changed meanwhile, until nothing has: so a commit is
// either in the listing or not.
func (s *Store) list(ctx context.Context, kind store.Kind, trim func(store.Record)) (store.Listing, error) {
	if _, ok := s.index.items[kind]; !ok {
		return store.Listing{}, errors.New("unknown kind")
	}
	if err := cmp.Or(s.closedError(), s.attached()); err != nil {
		return store.Listing{}, err
	}
	if err := s.scan(kind); err != nil {
		return store.Listing{}, err
	}
	got := map[string]result{}
	for round := 0; ; round++ {
		if round == 4 { // enough: commits wait
			s.applying.RLock()
			defer s.applying.RUnlock()
		}
		todo := s.stale(kind, got)
		if len(todo) == 0 {
			return listing(got), nil
		}
		if err := s.getAll(ctx, todo, got, trim); err != nil {
			return store.Listing{}, err
		}
	}
}

// result is one record of a listing.
type result struct {
	entry store.Entry
	err   error
}

// stale returns the keys of a kind that got does not hold as they are now, and drops from got what is gone.
func (s *Store) stale(kind store.Kind, got map[string]result) []store.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	maps.DeleteFunc(got, func(name string, _ result) bool { return s.index.items[kind][name].revision == 0 })
	var todo []store.Key
	for name := range s.index.items[kind] {
		key := store.Key{Kind: kind, Name: name}
		if r, ok := got[name]; !ok || r.entry.Revision != s.index.revision(key) {
			todo = append(todo, key)
		}
	}
	return todo
}

const listReaders = 4

func (s *Store) getAll(ctx context.Context, keys []store.Key, got map[string]result, trim func(store.Record)) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		fatal error
	)
	for part := range slices.Chunk(keys, len(keys)/listReaders+1) {
		wg.Go(func() {
			for _, key := range part {
				e, err := s.get(ctx, key)
				if err == nil {
					trim(e.Record)
				}
				mu.Lock()
				switch {
				case err == nil || errors.Is(err, store.ErrUnreadable):
					got[key.Name] = result{e, err}
				case !errors.Is(err, store.ErrAbsent):
					fatal = err
				}
				stop := fatal != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return fatal
}

func listing(got map[string]result) store.Listing {
	var list store.Listing
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if r := got[name]; r.err != nil {
			list.Unreadable = append(list.Unreadable, r.err)
		} else {
			list.Entries = append(list.Entries, r.entry)
		}
	}
	return list
}
