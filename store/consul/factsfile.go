package consul

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"github.com/spoacme/spoacme/store"
)

// factsFile is what StateDir keeps of what is issued, neither chains nor keys: a process that starts reads from Consul
// what has changed since, and not everything.
const factsFile = "facts"

// factsEvery is how often that file is written at most.
const factsEvery = 30 * time.Second

// factsLine is a line of the file.
type factsLine struct {
	Tag      string          `json:"t"`
	Revision store.Revision  `json:"r"`
	Name     string          `json:"n"`
	Record   json.RawMessage `json:"c"`
}

// load reads the file, once. What can't be read of it is fetched again.
func (f *facts) load(s *Store) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known != nil {
		return
	}
	f.known = map[string]fact{}
	if s.cfg.StateDir == "" {
		return
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.StateDir, factsFile))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("what this node knew of the certificates can't be read; all are fetched again", "err", err)
		}
		return
	}
	for line := range bytes.Lines(b) {
		var l factsLine
		if json.Unmarshal(line, &l) != nil {
			continue
		}
		r, err := store.DecodeFacts(store.Key{Kind: store.KindIssued, Name: l.Name}, l.Record)
		if c, ok := r.(*store.Certificate); ok && err == nil {
			f.known[l.Name] = fact{l.Tag, l.Revision, c}
		}
	}
}

// keepFacts writes the file when there is news, until ctx ends.
func (s *Store) keepFacts(ctx context.Context) {
	for alive := s.cfg.StateDir != ""; alive; {
		alive = sleep(ctx, factsEvery)
		if err := s.facts.save(s.cfg.StateDir); err != nil {
			s.log.Warn("what is known of the certificates is not kept on disk; the next start fetches more", "err", err)
		}
	}
}

func (f *facts) save(dir string) error {
	f.mu.Lock()
	known, news := maps.Clone(f.known), f.news
	f.news = false
	f.mu.Unlock()
	if !news {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := renameio.NewPendingFile(filepath.Join(dir, factsFile), renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer file.Cleanup() //nolint:errcheck // nothing is lost
	w := bufio.NewWriter(file)
	out := json.NewEncoder(w)
	for name, k := range known {
		b, err := store.EncodeFacts(k.record)
		if err == nil {
			err = out.Encode(factsLine{k.tag, k.revision, name, b})
		}
		if err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace()
}
