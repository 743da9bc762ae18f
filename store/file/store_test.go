package file

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openStore(t, t.TempDir(), Options{ScanEvery: 20 * time.Millisecond})
	}, storetest.Hooks{
		Edit: func(t *testing.T, s store.Store, key store.Key, data []byte) {
			waitWritten(t, s.(*Store))
			edit(t, s.(*Store).path(key), data)
		},
		EndLease: func(_ *testing.T, s store.Store) {
			s.(*Store).solo.EndLease(errors.New("the test took it"))
		},
	})
}

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// edit writes as an editor would: in place.
func edit(t testing.TB, path string, data []byte) {
	t.Helper()
	var err error
	if data == nil {
		err = os.Remove(path)
	} else if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
