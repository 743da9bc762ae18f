package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/seal"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	if err := validKey(key); err != nil {
		return store.Entry{}, fmt.Errorf("get %s: %w: %w", key, store.ErrAbsent, err)
	}
	pair, err := s.getAnnounced(ctx, key)
	if err != nil {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	if pair == nil {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, store.ErrAbsent)
	}
	sealer, err := s.opener(ctx)
	if err != nil {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	e, err := entry(key, pair, sealer)
	if err == nil {
		s.facts.read(e, pair)
	}
	return e, err
}

// getAnnounced reads a record, and notes whether it is what the feed told.
func (s *Store) getAnnounced(ctx context.Context, key store.Key) (*api.KVPair, error) {
	p, err := s.getFresh(ctx, key)
	if err == nil && inFeed(key.Kind) {
		s.met(key, p)
	}
	return p, err
}

// getFresh reads a record, at least as new as the feed told. The leader always asks: others may have edited it.
func (s *Store) getFresh(ctx context.Context, key store.Key) (*api.KVPair, error) {
	read := func() (*api.KVPair, error) {
		pair, index, err := s.c.get(ctx, s.keys.record(key), 0)
		if err == nil && index < s.floor(key) {
			// The feed told of a newer one than this server knows.
			pair, _, err = s.c.getConsistent(ctx, s.keys.record(key))
		}
		return pair, err
	}
	if s.leading.Load() {
		return read()
	}
	if pair, ok := s.just.get(key); ok {
		return pair, nil
	}
	if change := s.announced(key); change != "" {
		return s.lately.get(ctx, key, change, read)
	}
	return read()
}

func validKey(k store.Key) error {
	if !slices.Contains(store.Kinds(), k.Kind) {
		return fmt.Errorf("unknown kind %q", k.Kind)
	}
	return store.ValidName(k.Name)
}

func entry(key store.Key, p *api.KVPair, sealer store.Sealer) (e store.Entry, err error) {
	e = store.Entry{Key: key, Revision: revision(p)}
	e.Record, err = store.Decode(key, p.Value, sealer)
	return e, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, kind store.Kind) (store.Listing, error) {
	if !slices.Contains(store.Kinds(), kind) {
		return store.Listing{}, fmt.Errorf("list %s: unknown kind", kind)
	}
	dir := s.keys.dir(string(kind))
	pairs, err := s.listKind(ctx, kind, dir)
	if err != nil {
		return store.Listing{}, fmt.Errorf("list %s: %w", kind, err)
	}
	sealer, err := s.opener(ctx)
	if err != nil {
		return store.Listing{}, fmt.Errorf("list %s: %w", kind, err)
	}
	var list store.Listing
	for _, p := range pairs { // in the order of their names
		key := store.Key{Kind: kind, Name: strings.TrimPrefix(p.Key, dir)}
		if kind == store.KindChallenges {
			if e, ok := s.decoded.get(key, p); ok {
				list.Entries = append(list.Entries, e)
				continue
			}
		}
		if e, err := checkedEntry(key, p, sealer); err != nil {
			list.Unreadable = append(list.Unreadable, err)
		} else {
			list.Entries = append(list.Entries, e)
		}
	}
	return list, nil
}

func (s *Store) listKind(ctx context.Context, kind store.Kind, dir string) (api.KVPairs, error) {
	if kind == store.KindChallenges && ctx.Err() == nil {
		if pairs, ok := s.fresh.take(); ok {
			return pairs, nil
		}
	}
	if kind == store.KindWanted {
		return s.listWanted(ctx)
	}
	pairs, _, err := s.c.list(ctx, dir, 0)
	return pairs, err
}

// metaRecord is the value of meta.
type metaRecord struct {
	Version    int       `json:"v"`
	Fleet      string    `json:"fleet"`
	Datacenter string    `json:"datacenter,omitempty"`
	CAs        []string  `json:"cas,omitempty"`
	Created    time.Time `json:"created"`
}

// readMeta returns nil when there is no meta record or one that can't be read.
func (s *Store) readMeta(ctx context.Context) (*metaRecord, error) {
	pair, _, err := s.c.get(ctx, s.keys.meta(), 0)
	if err != nil || pair == nil {
		return nil, err
	}
	m := new(metaRecord)
	if json.Unmarshal(pair.Value, m) != nil || m.Fleet == "" {
		s.log.Error("record ignored: it is not readable", "key", s.keys.meta())
		return nil, nil
	}
	return m, nil
}

// fleet returns the id that sealed records are bound to; "" when no leader has made one yet.
func (s *Store) fleet(ctx context.Context) (string, error) {
	s.seen.mu.Lock()
	id := s.seen.fleet
	s.seen.mu.Unlock()
	if id != "" {
		return id, nil
	}
	meta, err := s.readMeta(ctx)
	if err != nil {
		return "", err
	}
	if meta == nil {
		return s.keptFleet(), nil
	}
	s.setFleet(meta.Fleet)
	return meta.Fleet, nil
}

func (s *Store) setFleet(id string) {
	if kept := s.keptFleet(); kept != id {
		var err error
		if kept != "" { // that id must not be lost: what was sealed with it can be opened with nothing else
			s.log.Warn("the fleet has another id than before; the former one is kept in the state directory", "former", kept, "now", id)
			err = keep(s.cfg.StateDir, "fleet.before", kept)
		}
		if err == nil {
			err = keep(s.cfg.StateDir, "fleet", id)
		}
		if err != nil {
			s.log.Warn("the fleet's id is not kept on disk", "err", err)
		}
	}
	s.seen.mu.Lock()
	s.seen.fleet = id
	s.seen.mu.Unlock()
}

// keptFleet is the id that this installation knew last: with it a fleet whose keys were deleted stays the same.
func (s *Store) keptFleet() string {
	if s.cfg.StateDir == "" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.StateDir, "fleet"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// opener is the sealer for reading.
func (s *Store) opener(ctx context.Context) (store.Sealer, error) {
	if s.cfg.Keys == nil {
		if s.cfg.Plain {
			return store.Plain{}, nil
		}
		return noKeys{}, nil
	}
	fleet, err := s.fleet(ctx)
	if err != nil {
		return nil, err
	}
	opener := s.cfg.Keys.Sealer(fleet, s.usable)
	switch {
	case s.cfg.Plain:
		return plainSealer{opener}, nil
	case s.cfg.FromPlain:
		return fromPlain{opener}, nil
	}
	return opener, nil
}

// usable tells whether a key may seal: every live node has it, as far as is known.
func (s *Store) usable(id string) bool {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.held == nil || s.seen.held[id]
}

// noKeys is the sealer of a process that has no keys: it may lack those of the issuer, or all.
type noKeys struct{}

var errNoKeys = errors.New("there is no sealing key here: make one with 'spoacme keygen' or copy the fleet's")

func (noKeys) Seal(store.Kind, string, []byte) (string, error) { return "", errNoKeys }
func (noKeys) Open(store.Kind, string, string) ([]byte, error) { return nil, errNoKeys }

// fromPlain seals, and still reads what was stored plain before.
type fromPlain struct{ store.Sealer }

func (f fromPlain) Open(kind store.Kind, name string, text string) ([]byte, error) {
	return plainSealer{f.Sealer}.Open(kind, name, text)
}

// plainSealer writes plain and still reads what was sealed before the fleet was set to plain.
type plainSealer struct{ sealed store.Sealer }

func (plainSealer) Seal(_ store.Kind, _ string, plain []byte) (string, error) {
	return string(plain), nil
}

func (p plainSealer) Open(kind store.Kind, name string, text string) ([]byte, error) {
	if !seal.IsSealed(text) {
		return []byte(text), nil
	}
	return p.sealed.Open(kind, name, text)
}
