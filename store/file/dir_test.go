package file

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	_, err := Open(dir, Options{})
	want := fmt.Sprintf("open store %s: process %d has it open; stop that one, or give this one a folder of its own with SPOACME_STORE", dir, os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	_ = s.Close()
	openStore(t, dir, Options{})
}

func TestClosed(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	lease := leaseOf(t, s)
	following, ended := make(chan bool, 1), make(chan error, 1)
	go func() {
		ended <- s.Follow(t.Context(), func([]store.Key) { following <- true })
	}()
	<-following
	_ = s.Close()
	_ = s.Close()
	if err := <-ended; err == nil {
		t.Error("follow ended without an error")
	}
	if lease.Context().Err() == nil {
		t.Error("the lease goes on")
	}
	_, get := s.Get(t.Context(), key("a"))
	_, list := s.List(t.Context(), store.KindBudget)
	_, lead := s.Lead(t.Context())
	commit := s.Commit(t.Context(), nil, nil, nil)
	for _, err := range []error{get, list, lead, commit} {
		if err == nil || !strings.Contains(err.Error(), "the store is closed") {
			t.Error(err)
		}
	}
}

func TestModes(t *testing.T) {
	for _, umask := range []int{0, 0o777} {
		dir := filepath.Join(t.TempDir(), "made", "store")
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		old := syscall.Umask(umask)
		s, err := openWithDir(dir, umask)
		if err == nil {
			err = commitWorld(t.Context(), s, leaseOf(t, s), 1)
			_ = s.Close()
		}
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "budget": os.ModeDir | 0o700, "budget/a.json": 0o600, "journal": 0o600} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil || info.Mode() != want {
				t.Errorf("umask %o: %q: %v %v, want %v", umask, path, err, info.Mode(), want)
			}
		}
	}
}

// openWithDir spares Open what only root can do: to work in a folder without any rights.
func openWithDir(dir string, umask int) (*Store, error) {
	if umask != 0 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return Open(dir, Options{})
}

func TestTempsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	temp, other := filepath.Join(dir, "issued", tempPrefix+"shop"), filepath.Join(dir, "issued", "notes.txt")
	edit(t, temp, []byte("half of a key"))
	edit(t, other, []byte("by hand"))
	s := openStore(t, dir, Options{})
	if _, err := os.Stat(temp); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is still there")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error("another's file is gone")
	}
	if l, err := s.List(t.Context(), store.KindIssued); err != nil || len(l.Entries)+len(l.Unreadable) > 0 {
		t.Error(err, l)
	}
}

func TestDamagedJournal(t *testing.T) {
	line, err := encodeBatch(1, []store.Write{{Key: key("a"), Data: []byte(`{"v":1,"ca":"a","error":"1"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := encodeBatch(2, []store.Write{{Key: key("a"), Data: []byte(`{"v":1,"ca":"a","error":"2"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Replace(again, []byte("Data"), []byte("Doto"), 1)
	for name, c := range map[string]struct {
		journal []byte
		want    string
		warned  bool
	}{
		"whole":       {append(bytes.Clone(line), again...), "2", false},
		"cut":         {append(bytes.Clone(line), again[:len(again)-1]...), "1", true},
		"flipped":     {append(bytes.Clone(line), flipped...), "1", true},
		"out of turn": {append(bytes.Clone(line), line...), "1", true},
		"zeros":       {append(bytes.Clone(line), make([]byte, 4096)...), "1", true},
		"garbage":     {[]byte("hello\n"), "", true},
		"empty":       {nil, "", false},
	} {
		dir := t.TempDir()
		edit(t, filepath.Join(dir, "journal"), append([]byte{}, c.journal...))
		var log bytes.Buffer
		s := openStore(t, dir, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if got := readWorld(t, s).a; got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if warned := strings.Contains(log.String(), "never acknowledged"); warned != c.warned {
			t.Errorf("%s: log %s", name, log.String())
		}
		if size := fileSize(filepath.Join(dir, "journal")); size != 0 {
			t.Errorf("%s: the journal has %d bytes", name, size)
		}
	}
}

func TestJournalNamesNoPath(t *testing.T) {
	dir := t.TempDir()
	line, err := encodeBatch(1, []store.Write{{Key: store.Key{Kind: "../..", Name: "../x"}, Data: []byte("{}")}, {Key: key("../x")}})
	if err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(dir, "journal"), line)
	edit(t, filepath.Join(dir, "x.json"), []byte("{}"))
	openStore(t, dir, Options{})
	if _, err := os.Stat(filepath.Join(dir, "x.json")); err != nil {
		t.Error(err)
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	edit(t, filepath.Join(dir, "else"), []byte(`{"v":1,"ca":"link"}`))
	edit(t, filepath.Join(dir, "budget", "folder.json", "x"), []byte("x"))
	if err := os.Symlink(filepath.Join(dir, "else"), filepath.Join(dir, "budget", "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "budget", "pipe.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := s.List(t.Context(), store.KindBudget)
	if err != nil || len(l.Entries) != 0 || len(l.Unreadable) != 3 {
		t.Errorf("%v: %d entries, %v", err, len(l.Entries), l.Unreadable)
	}
}

// TestRestore replaces the directory under a running process.
func TestRestore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, dir, Options{ScanEvery: 10 * time.Millisecond, quiet: 50 * time.Millisecond})
	lease := leaseOf(t, s)
	if err := commitWorld(t.Context(), s, lease, 1); err != nil {
		t.Fatal(err)
	}
	wait(t, "the journal is empty", func() bool { return fileSize(filepath.Join(dir, "journal")) == 0 })
	backup := copyOf(t, dir)
	if err := commitWorld(t.Context(), s, lease, 2); err != nil {
		t.Fatal(err)
	}
	waitWritten(t, s)
	changed := make(chan []store.Key, 100)
	go func() { _ = s.Follow(t.Context(), func(keys []store.Key) { changed <- keys }, store.KindBudget) }()
	<-changed
	replaceDir(t, dir, backup)
	for seen := map[string]bool{}; !seen["a"] || !seen["gone"]; {
		for _, k := range <-changed {
			seen[k.Name] = true
		}
	}
	if got := readWorld(t, s); got != wantWorld(1) {
		t.Errorf("after the restore: %+v", got)
	}
	if err := commitWorld(t.Context(), s, lease, 4); err != nil {
		t.Error(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a second process can have it")
	}
	crashed := copyOf(t, dir)
	if got := readWorld(t, openStore(t, crashed, Options{})); got != wantWorld(4) {
		t.Errorf("after the restore and a crash: %+v", got)
	}
}

func replaceDir(t *testing.T, dir, with string) {
	t.Helper()
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(with, dir); err != nil {
		t.Fatal(err)
	}
}

// TestEmptied: a folder that is gone does not say that there are no certificates.
func TestEmptied(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, dir, Options{})
	lease := leaseOf(t, s)
	if err := commitWorld(t.Context(), s, lease, 1); err != nil {
		t.Fatal(err)
	}
	waitWritten(t, s)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	replaceDir(t, dir, empty)
	want := fmt.Sprintf("the folder %s was emptied or unmounted; mount or restore it, or restart to begin with nothing", dir)
	_, get := s.Get(t.Context(), key("a"))
	_, list := s.List(t.Context(), store.KindBudget)
	commit := commitWorld(t.Context(), s, lease, 2)
	for _, err := range []error{get, list, commit} {
		if err == nil || !strings.HasSuffix(err.Error(), want) || errors.Is(err, store.ErrAbsent) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if !errors.Is(commit, store.ErrRefused) {
		t.Error(commit)
	}
}

func TestReadOnlyAtStart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	if err := commitWorld(t.Context(), s, leaseOf(t, s), 1); err != nil {
		t.Fatal(err)
	}
	crashed := copyOf(t, dir) // with the commit in the journal alone
	f := &faults{}
	f.set(true, "create", "remove", "rename", "journal truncate", "journal write", "journal replace")
	s, err := open(crashed, Options{}, f.step)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := readWorld(t, s); got != wantWorld(1) {
		t.Errorf("%+v", got)
	}
	if err := commitWorld(t.Context(), s, leaseOf(t, s), 2); err == nil || readWorld(t, s) != wantWorld(1) {
		t.Errorf("%v, %+v", err, readWorld(t, s))
	}
}
