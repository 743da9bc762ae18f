package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// A removal that can't be carried out while HAProxy is down is tried again until it can, and is one line in the log.
func TestRemovalWhileDown(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	list := filepath.Join(dir, "crt-list")
	if err := os.WriteFile(list, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hap, err := dataplane.Open(dataplane.Config{Socket: filepath.Join(dir, "none"), StateDir: state, CrtDir: dir, CrtList: list})
	if err != nil {
		t.Fatal(err)
	}
	defer hap.Close()
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	r := newRemoval(hap, newCatalog(storetest.NewMemory(), "node", log, func([]string) {}), log, state)
	q := &store.Request{ID: "r1", Op: store.RequestRemove, Certificate: "blog", Done: time.Now()}
	for range 3 {
		r.carryOut(t.Context(), q)
		if err, tried := r.outcome(q.ID); !tried || !errors.Is(err, dataplane.ErrDown) {
			t.Fatalf("tried %t: %v", tried, err)
		}
	}
	if n := strings.Count(said.String(), "a removed certificate is still in HAProxy"); n != 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
	q.Force = true
	r.carryOut(t.Context(), q)
	if err, _ := r.outcome(q.ID); err != nil || !strings.Contains(said.String(), "the removed certificate is out of HAProxy") {
		t.Errorf("forced: %v\n%s", err, said.String())
	}
}

// diskOnly is a HAProxy of which only the disk matters.
type diskOnly map[string]*store.Bundle

func (d diskOnly) OnDisk(_ context.Context, name, _ string) (*store.Bundle, error) {
	return d[name], nil
}

func (d diskOnly) Remove(_ context.Context, name string, _ bool) error {
	delete(d, name)
	return nil
}

// A removal takes what was there when it was asked for, not what was issued since: also when the store goes back to between the two.
func TestRemovalSparesWhatIsNewer(t *testing.T) {
	removed := time.Now().UTC().Add(-time.Hour)
	ca := storetest.NewCA(t, "CA")
	issued := func(at time.Time) (*store.Bundle, *store.Certificate) {
		// CAs date back by an hour.
		b := ca.Bundle(storetest.Leaf{Domains: []string{"shop.example.com"}, NotBefore: at.Add(-time.Hour), NotAfter: at.AddDate(0, 0, 90)})
		c := storetest.Records("shop")[1].(*store.Certificate)
		c.Chain, c.Private, c.Fingerprint = string(b.Chain()), store.NewSecret(b.Key()), b.Fingerprint
		c.NotBefore, c.NotAfter, c.IssuedAt = b.NotBefore, b.NotAfter, at
		return b, c
	}
	older, _ := issued(removed.Add(-time.Minute))
	newer, record := issued(removed.Add(time.Minute))
	later, _ := issued(removed.Add(2 * time.Hour))
	for name, c := range map[string]struct {
		disk   *store.Bundle
		stored bool // first, the newer one; then the store goes back
		spared bool
	}{
		"what was removed":                             {disk: older},
		"the newer one, seen in the store":             {disk: newer, stored: true, spared: true},
		"one that is newer by its own dates":           {disk: later, spared: true},
		"what was removed, its successor on its way":   {disk: older, stored: true},
		"the newer one, never seen by this sidecar":    {disk: newer}, // by its dates it may be the older one
		"nothing is there, the newer one in the store": {stored: true},
	} {
		t.Run(name, func(t *testing.T) {
			st := storetest.NewMemory()
			lease, err := st.Lead(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			cat := newCatalog(st, "node", slog.New(slog.DiscardHandler), func([]string) {})
			commit := func(op store.Op) {
				t.Helper()
				if err := st.Commit(t.Context(), lease, nil, []store.Op{op}); err != nil {
					t.Fatal(err)
				}
				if err := cat.apply(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
			q := &store.Request{ID: "one", Op: store.RequestRemove, Certificate: "shop", Asked: removed, Done: removed}
			commit(store.Put(q))
			disk := diskOnly{}
			if c.disk != nil {
				disk["shop"] = c.disk
			}
			state := t.TempDir()
			if c.stored {
				commit(store.Put(record))
				newRemoval(disk, cat, slog.New(slog.DiscardHandler), state).carryOut(t.Context(), q)
				if disk["shop"] != c.disk {
					t.Error("a certificate that the store has was removed")
				}
				commit(store.Delete(record.Key()))
			}
			newRemoval(disk, cat, slog.New(slog.DiscardHandler), state).carryOut(t.Context(), q)
			if spared := disk["shop"] != nil; spared != c.spared {
				t.Errorf("it is there: %v, want %v", spared, c.spared)
			}
			if err, tried := newRemoval(disk, cat, slog.New(slog.DiscardHandler), state).outcome(q.ID); err != nil || !tried {
				t.Errorf("it is not remembered: %v, %v", err, tried)
			}
		})
	}
}

// A removal that HAProxy refuses can be asked for once more with force, although the store has nothing left to remove.
func TestRemovalIsForced(t *testing.T) {
	st, log := storetest.NewMemory(), slog.New(slog.DiscardHandler)
	cat := newCatalog(st, "node", log, func([]string) {})
	q := &store.Request{ID: "one", Op: store.RequestRemove, Certificate: "shop", Asked: time.Now().UTC(), Done: time.Now().UTC()}
	if err := st.Commit(t.Context(), nil, nil, []store.Op{store.Put(q)}); err != nil {
		t.Fatal(err)
	}
	if err := cat.apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ctl := &control{store: st, catalog: cat, removal: newRemoval(diskOnly{}, cat, log, t.TempDir()), log: log}
	ctl.removal.note(q, errors.New("it is the only one"))
	for _, c := range []struct {
		ask  request
		want *store.Request
	}{
		{request{Op: store.RequestRemove, Certificate: "shop"}, nil},
		{request{Op: store.RequestRemove, Certificate: "blog", Force: true}, nil},
		{request{Op: store.RequestRenew, Certificate: "shop", Force: true}, nil},
		{request{Op: store.RequestRemove, Certificate: "shop", Force: true}, q},
	} {
		got := ctl.forced(c.ask)
		if (got == nil) != (c.want == nil) || got != nil && (got.ID != c.want.ID || !got.Force) {
			t.Errorf("%+v: %+v", c.ask, got)
		}
	}
}
