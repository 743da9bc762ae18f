package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// TestFaults lets every step fail once, and for ever. Whatever the commit reports must be so, then and after a restart.
func TestFaults(t *testing.T) {
	steps := []string{"journal write", "journal sync", "journal sync+journal truncate", "create", "write", "rename", "remove",
		"sync", "sync folder", "journal truncate", "journal write+journal truncate", "journal sync+journal truncate+journal replace"}
	for _, step := range steps {
		for _, lasting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %v", strings.ReplaceAll(step, " ", "-"), lasting), func(t *testing.T) {
				t.Parallel()
				testFault(t, strings.Split(step, "+"), lasting)
			})
		}
	}
}

func testFault(t *testing.T, steps []string, lasting bool) {
	f := &faults{}
	dir := t.TempDir()
	s, err := open(dir, Options{quiet: 50 * time.Millisecond}, f.step)
	if err != nil {
		t.Fatal(err)
	}
	lease := leaseOf(t, s)
	if err := commitWorld(t.Context(), s, lease, 1); err != nil {
		t.Fatal(err)
	}
	f.set(lasting, steps...)
	result := commitWorld(t.Context(), s, lease, 2)
	seen := readWorld(t, s)
	checkResult(t, result, seen)
	if len(steps) == 1 && (lasting || steps[0][0] != 'j') {
		wait(t, "the fault was met", func() bool { return f.met() })
	}
	if lasting && errors.Is(result, store.ErrUnknown) {
		if err := commitWorld(t.Context(), s, lease, 4); len(steps) == 3 && !errors.Is(err, store.ErrRefused) {
			t.Errorf("while the journal is uncertain: %v", err)
		} else if err != nil && readWorld(t, s) != seen {
			t.Error("what was read after an unknown result did not hold")
		}
	}
	crashed := copyOf(t, dir)
	f.set(false)
	if err := commitWorld(t.Context(), s, lease, 3); err != nil {
		t.Errorf("when it is over: %v", err)
	}
	_ = s.Close()
	if got := readWorld(t, openStore(t, dir, Options{})); got != wantWorld(3) {
		t.Errorf("after a restart: %+v", got)
	}
	if after := readWorld(t, openStore(t, crashed, Options{})); !errors.Is(result, store.ErrUnknown) {
		checkResult(t, result, after)
	} else if after != wantWorld(1) && after != wantWorld(2) && after != wantWorld(4) {
		t.Errorf("after a crash: %+v", after)
	}
}

func checkResult(t *testing.T, result error, seen world) {
	t.Helper()
	switch {
	case result == nil && seen != wantWorld(2),
		errors.Is(result, store.ErrRefused) && seen != wantWorld(1),
		errors.Is(result, store.ErrUnknown) && seen != wantWorld(1) && seen != wantWorld(2),
		result != nil && errors.Is(result, store.ErrRefused) == errors.Is(result, store.ErrUnknown):
		t.Errorf("result %v, but %+v", result, seen)
	}
}

// faults makes steps fail as a full disk does.
type faults struct {
	mu      sync.Mutex
	fail    map[string]bool
	lasting bool
	count   int
}

func (f *faults) met() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count > 0
}

func (f *faults) set(lasting bool, steps ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.lasting = map[string]bool{}, lasting
	for _, s := range steps {
		f.fail[s] = true
	}
}

func (f *faults) step(name, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fail[name] {
		return nil
	}
	f.count++
	if !f.lasting {
		delete(f.fail, name)
	}
	return &os.PathError{Op: name, Path: "test", Err: syscall.ENOSPC}
}

// TestFailedSync: what a failed sync leaves in the page cache is not trusted to be written later.
// The kernel drops the pages that it could not write: the file reads as zeros then, and the next sync succeeds.
func TestLostPages(t *testing.T) {
	dir := t.TempDir()
	var lost atomic.Bool
	s, err := open(dir, Options{quiet: 50 * time.Millisecond}, func(step, path string) error {
		if step != "sync" || filepath.Base(path) != "a.json" || !lost.CompareAndSwap(false, true) {
			return nil
		}
		if err := os.WriteFile(path, make([]byte, fileSize(path)), 0o600); err != nil {
			t.Error(err)
		}
		return &os.PathError{Op: "sync", Path: path, Err: syscall.EIO}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), leaseOf(t, s), nil, []store.Op{store.Put(budget("a", "1"))}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the journal is empty", func() bool { return lost.Load() && fileSize(filepath.Join(dir, "journal")) == 0 })
	_ = s.Close()
	if _, err := openStore(t, dir, Options{}).Get(t.Context(), store.Key{Kind: store.KindBudget, Name: "a"}); err != nil {
		t.Error("what was acknowledged is lost:", err)
	}
}

func TestFailedSync(t *testing.T) {
	f, renamed := &faults{}, map[string]int{}
	dir := t.TempDir()
	s, err := open(dir, Options{quiet: 50 * time.Millisecond}, func(step, path string) error {
		if step == "rename" {
			renamed[filepath.Base(path)]++
		}
		return f.step(step, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	f.set(false, "sync")
	if err := s.Commit(t.Context(), leaseOf(t, s), nil, []store.Op{store.Put(budget("a", "1"))}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the journal is empty", func() bool { return f.met() && fileSize(filepath.Join(dir, "journal")) == 0 })
	_ = s.Close()
	if renamed["a.json"] != 2 {
		t.Errorf("written %d times", renamed["a.json"])
	}
}
