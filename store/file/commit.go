package file

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spoacme/spoacme/store"
)

const (
	maxBatchBytes   = 4 << 20
	maxJournalBytes = 16 << 20
	maxPending      = 1024 // records
	// pause is how long nothing is committed before files are written. Most records of an order are gone again by then.
	pause = 200 * time.Millisecond
)

// request is one commit on its way to the writer.
type request struct {
	lease  store.Lease
	pre    []store.Precondition
	writes []store.Write
	state  atomic.Int32
	done   chan error
}

// States of a request: either the writer takes it or its caller gives it up.
const (
	waiting int32 = iota
	taken
	givenUp
)

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, lease store.Lease, pre []store.Precondition, ops []store.Op) error {
	if err := ctx.Err(); err != nil {
		return store.Refusedf("%w", err)
	}
	writes, err := store.EncodeCommit(lease, pre, ops, s.sealer)
	if err != nil {
		return err
	}
	r := &request{lease: lease, pre: pre, writes: writes, done: make(chan error, 1)}
	select {
	case s.queue <- r:
	case <-s.closing:
		return store.Refusedf("%w", errClosed)
	case <-ctx.Done():
		return store.Refusedf("%w", ctx.Err())
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
	}
	if r.state.CompareAndSwap(waiting, givenUp) {
		return store.Refusedf("%w", ctx.Err())
	}
	select {
	case err := <-r.done:
		return err
	default:
		return fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	}
}

// write is the one writer.
func (s *Store) write() {
	defer s.finish()
	idle := time.NewTimer(s.quiet)
	defer idle.Stop()
	for written := true; ; {
		select {
		case <-s.closing:
			return
		case r := <-s.queue:
			s.commitBatch(s.gather(r))
			written = len(s.pending) > maxPending && s.reported("write records", s.writeOut())
			if s.journal.size > maxJournalBytes {
				written = s.checkpoint()
			}
			idle.Reset(pause)
		case <-idle.C:
			if !written {
				written = s.reported("write records", s.writeOut())
				idle.Reset(s.quiet)
			} else if !s.checkpoint() || s.Reachable() != nil && !s.probe() {
				idle.Reset(s.quiet)
			}
		}
	}
}

// storage keeps why a commit could not be written; nil when it could.
func (s *Store) storage(err error) {
	if err != nil {
		err = fmt.Errorf("folder %s: %w: free space, or make it writable", s.dir, err)
	}
	s.unwritten.Store(&err)
}

// Reachable returns why the last commit could not be written; nil when it could. It is tried again by itself.
func (s *Store) Reachable() error {
	if err := s.unwritten.Load(); err != nil {
		return *err
	}
	return nil
}

// probe finds out whether the disk can be written again.
func (s *Store) probe() bool {
	err := s.ready()
	if err == nil {
		err = s.journal.append(nil)
	}
	s.storage(err)
	return err == nil
}

// reported logs the first of several errors in a row and reports whether there is none.
func (s *Store) reported(what string, err error) bool {
	if err != nil && !s.failing {
		s.log.Error(what+": they are kept in journal and memory until it works", "folder", s.dir, "err", err)
	}
	s.failing = err != nil
	return err == nil
}

func (s *Store) finish() {
	if !s.checkpoint() {
		s.log.Warn("the store's journal could not be emptied; the next start writes its records again", "folder", s.dir)
	}
}

// gather takes the requests that wait already.
func (s *Store) gather(r *request) []*request {
	var requests []*request
	for size := 0; ; {
		if r.state.CompareAndSwap(waiting, taken) {
			requests = append(requests, r)
			for _, w := range r.writes {
				size += len(w.Data)
			}
		}
		if size > maxBatchBytes {
			return requests
		}
		select {
		case r = <-s.queue:
		default:
			return requests
		}
	}
}

// commitBatch answers every request.
func (s *Store) commitBatch(requests []*request) {
	if err := s.ready(); err != nil {
		s.storage(err)
		for _, r := range requests {
			r.done <- store.Refusedf("%w: %w", store.ErrStorage, err)
		}
		return
	}
	var (
		accepted []*request
		writes   []store.Write
		written  = map[store.Key][]byte{}
	)
	for _, r := range requests {
		if err := s.admit(r, written); err != nil {
			r.done <- err
			continue
		}
		for _, w := range r.writes {
			written[w.Key] = w.Data
		}
		writes = append(writes, r.writes...)
		accepted = append(accepted, r)
	}
	var err error
	if len(writes) > 0 {
		if err = s.journal.append(writes); err == nil {
			s.apply(written)
		}
		s.storage(err)
	}
	for _, r := range accepted {
		if len(r.writes) == 0 {
			r.done <- nil
		} else {
			r.done <- err
		}
	}
}

// ready makes sure that there is a journal to write to.
func (s *Store) ready() error {
	if err := s.attached(); err != nil {
		return err
	}
	if !s.journal.attached() {
		return s.openJournal()
	}
	if s.journal.broken && !s.checkpoint() {
		return errors.New("the journal can't be written; look for errors of the disk")
	}
	return nil
}

// admit refuses a request whose lease or preconditions don't hold after what is written before it.
func (s *Store) admit(r *request, written map[store.Key][]byte) error {
	if err := s.solo.Holds(r.lease); err != nil {
		return err
	}
	keys := make([]store.Key, 0, len(r.pre)+len(r.writes))
	demanded := make(map[store.Key]bool, len(r.pre))
	for _, p := range r.pre {
		keys = append(keys, p.Key)
		demanded[p.Key] = true
	}
	for _, w := range r.writes {
		keys = append(keys, w.Key)
	}
	if err := s.refresh(keys...); err != nil {
		return store.Refusedf("%w", err)
	}
	for _, p := range r.pre {
		if !s.holds(p, written) {
			return store.Refusedf("%s changed since it was read", p.Key)
		}
	}
	for _, w := range r.writes {
		if _, ours := written[w.Key]; ours || demanded[w.Key] {
			continue
		}
		if err := s.replaceable(w.Key); err != nil {
			return store.Refusedf("%w", err)
		}
	}
	return nil
}

// holds reports whether a precondition does. Nobody can know the revision of what is being written.
func (s *Store) holds(p store.Precondition, written map[store.Key][]byte) bool {
	if data, ok := written[p.Key]; ok {
		return data == nil && p.Revision == ""
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index.revision(p.Key) == p.Revision
}

// replaceable refuses to lose a record that can't be read.
func (s *Store) replaceable(key store.Key) error {
	s.mu.RLock()
	it := s.index.get(key)
	s.mu.RUnlock()
	if it.revision == 0 || it.checked == isReadable {
		return nil
	}
	if _, err := s.get(context.Background(), key); err != nil && !errors.Is(err, store.ErrAbsent) {
		return err
	}
	return nil
}
