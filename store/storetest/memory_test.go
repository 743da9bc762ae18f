package storetest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		m := storetest.NewMemory()
		t.Cleanup(func() { _ = m.Close() })
		return m
	}, storetest.Hooks{
		Edit: func(_ *testing.T, s store.Store, key store.Key, data []byte) { s.(*storetest.Memory).Edit(key, data) },
		EndLease: func(_ *testing.T, s store.Store) {
			s.(*storetest.Memory).EndLease(errors.New("the test took it"))
		},
	})
}

func TestFaults(t *testing.T) {
	put := func(n int) []store.Op {
		return []store.Op{store.Put(&store.Demand{Node: "n", Since: time.Unix(1_800_000_000+int64(n), 0)})}
	}
	for name, c := range map[string]struct {
		fault  storetest.Fault
		give   time.Duration // of patience
		want   error
		stored bool
	}{
		"none":            {want: nil, stored: true},
		"refused":         {fault: storetest.Fault{Outcome: storetest.Refused}, want: store.ErrRefused},
		"stored":          {fault: storetest.Fault{Outcome: storetest.Stored}, want: store.ErrUnknown, stored: true},
		"lost":            {fault: storetest.Fault{Outcome: storetest.Lost}, want: store.ErrUnknown},
		"slow":            {fault: storetest.Fault{Stall: time.Minute}, want: nil, stored: true},
		"too slow":        {fault: storetest.Fault{Stall: time.Minute}, give: time.Second, want: store.ErrUnknown},
		"stored too slow": {fault: storetest.Fault{Outcome: storetest.Stored, Stall: time.Minute}, give: time.Second, want: store.ErrUnknown, stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := storetest.NewMemory()
				m.OnCommit = func(n int, ops []store.Op) storetest.Fault {
					if n == 1 && len(ops) == 1 {
						return c.fault
					}
					return storetest.Fault{}
				}
				ctx := t.Context()
				if c.give > 0 {
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, c.give)
					defer cancel()
				}
				if err := m.Commit(ctx, nil, nil, put(1)); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("%v, want %v", err, c.want)
				}
				key := store.Key{Kind: store.KindDemand, Name: "n"}
				if _, err := m.Get(t.Context(), key); (err == nil) != c.stored {
					t.Errorf("stored: %v", err)
				}
				if err := m.Commit(t.Context(), nil, nil, put(2)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestSnapshotAndReadFaults(t *testing.T) {
	m := storetest.NewMemory()
	key := store.Key{Kind: store.KindDemand, Name: "n"}
	m.Edit(key, []byte("old"))
	restore := m.Snapshot()
	m.Edit(key, []byte("new"))
	m.Edit(store.Key{Kind: store.KindDemand, Name: "m"}, []byte("new"))
	restore()
	if string(m.Raw(key)) != "old" || m.Raw(store.Key{Kind: store.KindDemand, Name: "m"}) != nil {
		t.Error("not restored")
	}
	broken := errors.New("broken")
	m.OnRead = func(store.Key) error { return broken }
	if _, err := m.Get(t.Context(), key); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := m.List(t.Context(), store.KindDemand); !errors.Is(err, broken) {
		t.Error(err)
	}
}
