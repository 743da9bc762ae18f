package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/file"
	"github.com/spoacme/spoacme/store/seal"
)

// records is the store that the settings name: a directory, or Consul.
type records struct {
	store.Store
	fleet *consul.Store // nil for a directory
	copy  store.Store   // this process's own, of what must not be lost; may be nil
	close func() error
}

// ListFacts makes store.ListFacts find the store's own.
func (r *records) ListFacts(ctx context.Context, kind store.Kind) (store.Listing, error) {
	return store.ListFacts(ctx, r.Store, kind)
}

func openStore(s settings.Settings, log *slog.Logger) (*records, error) {
	if dir := s.StoreDir(); dir != "" {
		st, err := file.Open(dir, file.Options{Node: s.Node, Log: log})
		if err != nil {
			return nil, err
		}
		return &records{Store: st, close: st.Close}, nil
	}
	keys, err := loadKeys(s)
	if err != nil {
		return nil, err
	}
	st, err := consul.Open(consul.Config{
		URL: s.Store, Node: s.Node, Role: consul.Role(s.Role), StateDir: s.State, Keys: keys, Plain: s.SealPlain, FromPlain: s.SealFromPlain, CAs: s.CAs, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return &records{Store: st, fleet: st, close: func() error { return nil }}, nil
}

// run keeps this node in its fleet, if there is one.
func (r *records) run(ctx context.Context, g *errgroup.Group) {
	if r.fleet != nil {
		g.Go(func() error { return r.fleet.Run(ctx) })
	}
}

// reachable returns why the store can't be used now.
func (r *records) reachable() error {
	if s, ok := r.Store.(interface{ Reachable() error }); ok {
		return s.Reachable()
	}
	return nil
}

// inStep reports whether the store tells of new tokens now, as far as this process knows.
func (r *records) inStep() bool {
	return r.reachable() == nil && (r.fleet == nil || r.fleet.TableInStep())
}

// loadKeys reads the keysets. There is no default key: private keys are sealed, or plain by a word of the operator.
func loadKeys(s settings.Settings) (*seal.Keys, error) {
	switch {
	case s.FleetKeys == "" && s.SealPlain:
		return nil, nil
	case s.FleetKeys == "":
		return nil, errors.New("private keys in Consul must be sealed: make keysets with 'spoacme keygen' and name them in SPOACME_FLEET_KEYS and SPOACME_ISSUER_KEYS, or choose SPOACME_SEAL=plain")
	case s.IssuerKeys == "" && s.Role != "edge":
		return nil, fmt.Errorf("a sidecar of role %s may lead and needs the issuer keyset: name it in SPOACME_ISSUER_KEYS, or use SPOACME_ROLE=edge", s.Role)
	}
	fleet, err := readKeys("SPOACME_FLEET_KEYS", s.FleetKeys)
	if err != nil {
		return nil, err
	}
	var issuer []byte
	if s.Role != "edge" {
		if issuer, err = readKeys("SPOACME_ISSUER_KEYS", s.IssuerKeys); err != nil {
			return nil, err
		}
	}
	return seal.Load(fleet, issuer)
}

func readKeys(variable, path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no %s: make it with 'spoacme keygen', or copy it from another node", variable, path)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", variable, err)
	case info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s: everybody can read %s: chmod 0600 %s", variable, path, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return b, nil
}
