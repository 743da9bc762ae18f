package main

import (
	"bytes"
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
