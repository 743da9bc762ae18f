package file

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// world is the records of a test: what a commit changes, it changes in all of them.
type world struct{ a, b, x, gone string }

func budget(name, text string) *store.Budget { return &store.Budget{CA: name, Error: text} }

func key(name string) store.Key { return store.Key{Kind: store.KindBudget, Name: name} }

// commitWorld makes every record say n; "gone" is there for odd n only.
func commitWorld(ctx context.Context, s *Store, lease store.Lease, n int) error {
	text := strconv.Itoa(n)
	last := store.Put(budget("gone", text))
	if n%2 == 0 {
		last = store.Delete(key("gone"))
	}
	return s.Commit(ctx, lease, nil, []store.Op{store.Put(budget("a", text)), store.Put(budget("b", text)),
		store.Put(&store.Attempt{Name: "x", Error: text}), last})
}

func readWorld(t *testing.T, s *Store) (w world) {
	t.Helper()
	for k, field := range map[store.Key]*string{key("a"): &w.a, key("b"): &w.b, key("gone"): &w.gone, {Kind: store.KindAttempt, Name: "x"}: &w.x} {
		e, err := s.Get(t.Context(), k)
		switch r := e.Record.(type) {
		case *store.Budget:
			*field = r.Error
		case *store.Attempt:
			*field = r.Error
		default:
			if !errors.Is(err, store.ErrAbsent) {
				t.Fatal(err)
			}
		}
	}
	return w
}

func wantWorld(n int) world {
	if n == 0 {
		return world{}
	}
	text := strconv.Itoa(n)
	w := world{a: text, b: text, x: text}
	if n%2 == 1 {
		w.gone = text
	}
	return w
}

func leaseOf(t testing.TB, s *Store) store.Lease {
	t.Helper()
	l, err := s.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// snapshot is a copy of the directory at one moment of a run.
type snapshot struct {
	step   string
	dir    string
	acked  int             // commits that were reported as done
	synced int64           // bytes of the journal that are on disk for certain
	loose  map[string]bool // paths of records that are not
}

// recorder copies a directory before every step that changes something on disk.
type recorder struct {
	t           *testing.T
	dir, copies string

	mu      sync.Mutex
	on      bool
	acked   int
	snaps   []snapshot
	syncing bool
	synced  int64
	loose   map[string]bool
}

func (r *recorder) step(step, path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.on {
		return nil
	}
	if r.syncing { // which is over
		r.synced = fileSize(filepath.Join(r.dir, "journal"))
	}
	name, err := filepath.Rel(r.dir, path)
	if err != nil {
		r.t.Error(err)
	}
	to := filepath.Join(r.copies, strconv.Itoa(len(r.snaps)))
	if err := os.CopyFS(to, os.DirFS(r.dir)); err != nil {
		r.t.Error(err)
	}
	r.snaps = append(r.snaps, snapshot{step, to, r.acked, r.synced, maps.Clone(r.loose)})
	r.syncing = step == "journal sync" || step == "journal truncate"
	switch step {
	case "rename", "remove":
		r.loose[name] = true
	case "sync":
		delete(r.loose, name)
	}
	return nil
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// TestCrash copies the directory before every step of some commits. Each copy, as kill -9 leaves it and as a loss of
// power may, opens as the state of one commit, not older than the last one that was acknowledged.
func TestCrash(t *testing.T) {
	r := &recorder{t: t, dir: t.TempDir(), copies: t.TempDir(), loose: map[string]bool{}}
	s, err := open(r.dir, Options{quiet: 50 * time.Millisecond}, r.step)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.on = true
	r.mu.Unlock()
	lease := leaseOf(t, s)
	const commits = 6
	for n := range commits {
		if err := commitWorld(t.Context(), s, lease, n+1); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.acked = n + 1
		r.mu.Unlock()
		switch n {
		case 1, 4:
			waitWritten(t, s)
		case 2:
			wait(t, "the journal is empty", func() bool { return fileSize(filepath.Join(r.dir, "journal")) == 0 })
		}
	}
	_ = s.Close()
	if len(r.snaps) < 40 {
		t.Fatalf("only %d steps", len(r.snaps))
	}
	for i, snap := range r.snaps {
		for name, harm := range map[string]func(*testing.T, snapshot){
			"kill":  func(*testing.T, snapshot) {},
			"power": losePower,
			"cut":   cutJournal,
		} {
			t.Run(fmt.Sprintf("%d %s %s", i, strings.ReplaceAll(snap.step, " ", "-"), name), func(t *testing.T) {
				t.Parallel()
				checkSnapshot(t, snap, harm)
			})
		}
	}
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); !ok(); <-tick.C {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("not so: %s", what)
		}
	}
}

// waitWritten waits until all that was committed is in files.
func waitWritten(t testing.TB, s *Store) {
	t.Helper()
	wait(t, "the files are written", func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return len(s.pending) == 0
	})
}

// losePower empties what was not synced, and brings back what was removed.
func losePower(t *testing.T, snap snapshot) {
	for name := range snap.loose {
		path := filepath.Join(snap.dir, name)
		if _, err := os.Stat(path); err == nil {
			edit(t, path, []byte{})
		} else {
			edit(t, path, []byte(`{"v":1,"ca":"gone","error":"from the grave"}`)) // the only one that is ever removed
		}
	}
	if fileSize(filepath.Join(snap.dir, "journal")) > snap.synced {
		truncate(t, snap.dir, snap.synced)
	}
}

// cutJournal leaves half of the line that is being written.
func cutJournal(t *testing.T, snap snapshot) {
	if size := fileSize(filepath.Join(snap.dir, "journal")); size > snap.synced {
		truncate(t, snap.dir, (snap.synced+size)/2)
	}
}

func truncate(t *testing.T, dir string, size int64) {
	t.Helper()
	if err := os.Truncate(filepath.Join(dir, "journal"), size); err != nil {
		t.Fatal(err)
	}
}

func checkSnapshot(t *testing.T, snap snapshot, harm func(*testing.T, snapshot)) {
	snap.dir = copyOf(t, snap.dir)
	harm(t, snap)
	s := openStore(t, snap.dir, Options{})
	got := readWorld(t, s)
	if got != wantWorld(snap.acked) && got != wantWorld(snap.acked+1) {
		t.Errorf("after %d commits: %+v", snap.acked, got)
	}
	if err := commitWorld(t.Context(), s, leaseOf(t, s), 9); err != nil {
		t.Error(err)
	}
	_ = s.Close()
	if got := readWorld(t, openStore(t, snap.dir, Options{})); got != wantWorld(9) {
		t.Errorf("the commit after it: %+v", got)
	}
	temps, _ := filepath.Glob(filepath.Join(snap.dir, "*", tempPrefix+"*"))
	if len(temps) > 0 {
		t.Errorf("left behind: %s", temps)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

const childEnv = "STORE_FILE_TEST_CHILD"

// TestMain is also the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

func child(dir string) {
	s, err := Open(dir, Options{})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	lease, _ := s.Lead(context.Background())
	for n := 1; ; n++ {
		if err := commitWorld(context.Background(), s, lease, n); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("done", n)
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			text, ok := strings.CutPrefix(lines.Text(), "done ")
			if !ok {
				t.Fatal(lines.Text())
			}
			acked, _ = strconv.Atoi(text)
			if acked == 50+17*round {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		s := openStore(t, dir, Options{})
		got := readWorld(t, s)
		if n, _ := strconv.Atoi(got.a); got != wantWorld(n) || n < acked || n > acked+1 {
			t.Errorf("killed after %d commits: %+v", acked, got)
		}
		_ = s.Close()
	}
}
