package issuer

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// A node on its own has nobody who offers what its store has lost. So it compares the store with its own disk: everything when a
// term begins, and what has changed in the store, which somebody may have put back.

// noteOwn notes what is to be compared with the disk.
func (t *term) noteOwn(all bool, changed []store.Key) {
	if t.fleet != nil || t.disk == nil {
		return
	}
	if all {
		// Once more a minute later: HAProxy may be starting, and until then nobody knows where its files are.
		t.compareOwn(slices.Collect(maps.Keys(t.index.issued)))
		t.compareAll = time.Now().Add(lookAgain)
	}
	for _, k := range changed {
		if k.Kind == store.KindIssued {
			t.compareOwn([]string{k.Name})
		}
	}
}

func (t *term) compareOwn(names []string) {
	for _, name := range names {
		t.compare[name] = true
	}
	t.offersAt = time.Now()
}

// takeOwn takes back what is better on the own disk. A certificate that is being ordered waits until that is over.
func (t *term) takeOwn(ctx context.Context, now time.Time) error {
	if !t.compareAll.IsZero() && !t.compareAll.After(now) {
		t.compareOwn(slices.Collect(maps.Keys(t.index.issued)))
		t.offersAt, t.compareAll = time.Time{}, time.Time{}
	}
	for _, name := range slices.Sorted(maps.Keys(t.compare)) {
		if t.running[name] != nil {
			t.offersAt = now.Add(offersAgain)
			continue
		}
		if t.betterOnDisk(ctx, name, now) {
			if err := t.takeOffer(ctx, name, nil); err != nil {
				t.offersAt = now.Add(offersAgain)
				t.log.Warn("what is better on disk is not taken back; trying again", "certificate", name, "err", err)
				continue
			}
		}
		delete(t.compare, name)
	}
	t.offersAt = sooner(t.offersAt, t.compareAll)
	return nil
}

// betterOnDisk reports whether a look at what is stored is worth while.
func (t *term) betterOnDisk(ctx context.Context, name string, now time.Time) bool {
	have := t.index.issued[name]
	if have == nil { // what is wanted is looked for before it is ordered
		return false
	}
	b, err := t.disk(ctx, name, have.fingerprint)
	return err == nil && b != nil && (b.NotBefore.After(have.notBefore) || !now.Before(have.notAfter))
}
