package issuer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spoacme/spoacme/store"
)

// dropIntents deletes orders that were not placed and that nothing calls for any more: a restore brings them back beside a
// certificate that is taken from a node, and a leader that dies leaves them of what nobody wants any more. Nothing is lost with
// one: its key was shown to no CA, and what a CA was asked for under it was not recorded and is never finalized.
func (t *term) dropIntents(ctx context.Context, now time.Time) error {
	for _, name := range slices.Sorted(maps.Keys(t.index.orders)) {
		if !t.idle(name, now) {
			continue
		}
		key := store.Key{Kind: store.KindOrder, Name: name}
		e, err := t.store.Get(ctx, key) // the index does not watch orders
		if err != nil && !errors.Is(err, store.ErrAbsent) && !errors.Is(err, store.ErrUnreadable) {
			return err
		}
		if o, ok := e.Record.(*store.Order); ok && o.URL != "" {
			t.index.put(o, "")
			continue
		} else if ok {
			err = t.commit(ctx, []store.Precondition{{Key: key, Revision: e.Revision}}, []store.Op{store.Delete(key)})
			var refused *failure
			if errors.As(err, &refused) {
				t.once("an order that nothing calls for can't be deleted", err.Error())
			} else if err != nil {
				return err
			}
		}
		t.index.drop(key)
	}
	return nil
}

// idle reports whether a certificate has an order that was not placed, and is not to be ordered.
func (t *term) idle(name string, now time.Time) bool {
	if t.running[name] != nil || t.index.orders[name].url != "" {
		return false
	}
	w := t.index.wanted[name]
	if w == nil || !active(w) {
		return true
	}
	why, _ := due(w, t.index.issued[name], now)
	return why == notDue
}
