package issuer

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/spoacme/spoacme/store"
)

// storeError is a failure of the store, which says nothing of the CA or the names.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// commit writes under the lease. An unknown result is settled by reading: what was written is done, what was not is
// written again; so is what was not written because the store was out of reach for a moment. Its errors are storeErrors.
func (t *term) commit(ctx context.Context, pre []store.Precondition, ops []store.Op) error {
	var err error
	began := time.Now()
	for n := 0; n == 0 || goesOn(err, n, time.Since(began)); n++ {
		if n > 0 {
			unknown := errors.Is(err, store.ErrUnknown)
			if pauseErr := sleep(ctx, min(time.Duration(n)*50*time.Millisecond, time.Second)); pauseErr != nil {
				return pauseErr
			}
			if unknown {
				written, readErr := t.written(ctx, ops)
				if readErr != nil {
					err = errors.Join(err, readErr)
					continue
				}
				if written {
					return nil
				}
			}
		}
		if err = t.store.Commit(ctx, t.lease, pre, ops); err == nil {
			return nil
		}
	}
	switch {
	case errors.Is(err, store.ErrRefused) && !errors.Is(err, store.ErrStorage) && t.ctx.Err() == nil && t.lease.Context().Err() == nil && t.met(ctx, pre):
		return &failure{class: classStore, err: err} // it is what we want to write that is wrong
	}
	return &storeError{err}
}

// settleFor is how long an unknown result is looked into: a lease on a store that does not answer is over long before.
const settleFor = time.Minute

// goesOn reports whether a commit that was tried n times is tried again.
func goesOn(err error, n int, since time.Duration) bool {
	return errors.Is(err, store.ErrUnknown) && since < settleFor || errors.Is(err, store.ErrStorage) && n < 8
}

// met reports whether conditions hold.
func (t *term) met(ctx context.Context, pre []store.Precondition) bool {
	for _, p := range pre {
		e, err := t.store.Get(ctx, p.Key)
		if err != nil && !errors.Is(err, store.ErrAbsent) || e.Revision != p.Revision {
			return false
		}
	}
	return true
}

// written reports whether the store is as ops leave it.
func (t *term) written(ctx context.Context, ops []store.Op) (bool, error) {
	for _, op := range ops {
		e, err := t.store.Get(ctx, op.Key)
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			return false, err
		}
		if op.Record == nil || err != nil {
			if (op.Record == nil) != (err != nil) {
				return false, nil
			}
			continue
		}
		if !sameRecord(e.Record, op.Record) {
			return false, nil
		}
	}
	return true, nil
}

// sameRecord compares all that is stored of two records.
func sameRecord(a, b store.Record) bool {
	is, err1 := store.Encode(a, store.Plain{})
	want, err2 := store.Encode(b, store.Plain{})
	return err1 == nil && err2 == nil && bytes.Equal(is, want)
}

// fence fails when the lease is no longer ours: nothing is asked of the CA then.
func (t *term) fence(ctx context.Context) error { return t.commit(ctx, nil, nil) }

// chunks cuts operations into commits of a size that every store takes; one whose records are too large is refused, and write takes
// it apart.
func chunks(ops []store.Op) [][]store.Op {
	const most = store.MaxOperations
	var all [][]store.Op
	for len(ops) > most {
		all, ops = append(all, ops[:most]), ops[most:]
	}
	if len(ops) > 0 {
		all = append(all, ops)
	}
	return all
}
