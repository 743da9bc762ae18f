package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/store"
)

// removal takes out of HAProxy what an operator removed. Nothing else does: a certificate that merely is not in the
// store stays as it is.
type removal struct {
	hap     remover
	catalog *catalog
	log     *slog.Logger
	file    string           // what was carried out here, over restarts
	done    map[string]error // by request: how it ended here; nil error: removed
	wake    chan struct{}
}

// remover is what of HAProxy a removal needs.
type remover interface {
	Remove(ctx context.Context, name string, force bool) error
	OnDisk(ctx context.Context, name, known string) (*store.Bundle, error)
}

// newRemoval remembers in the state directory what was carried out. A removal stays in the store for weeks, for nodes that were
// down; what somebody has put into HAProxy by hand since must not go with it at every restart.
func newRemoval(hap remover, c *catalog, log *slog.Logger, state string) *removal {
	r := &removal{hap: hap, catalog: c, log: log, file: filepath.Join(state, "removals"), done: map[string]error{}, wake: make(chan struct{}, 1)}
	text, err := os.ReadFile(r.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("which removals were carried out is not known; they are once more", "err", err)
	}
	for id := range strings.Lines(string(text)) {
		r.done[strings.TrimSpace(id)] = nil
	}
	return r
}

// remember keeps what was carried out of what is still in the store.
func (r *removal) remember() {
	var text strings.Builder
	for _, q := range all[*store.Request](r.catalog) {
		if err, tried := r.outcome(q.ID); tried && err == nil {
			text.WriteString(q.ID + "\n")
		}
	}
	if err := renameio.WriteFile(r.file, []byte(text.String()), 0o600); err != nil {
		r.log.Warn("a removal that was carried out is not noted; it is once more after a restart", "err", err)
	}
}

const removalEvery = 2 * time.Second

// Run carries removals out until ctx ends, again and again until HAProxy did.
func (r *removal) Run(ctx context.Context) error {
	tick := time.NewTicker(removalEvery)
	defer tick.Stop()
	for {
		for _, q := range all[*store.Request](r.catalog) {
			r.carryOut(ctx, q)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.wake:
		}
	}
}

func (r *removal) carryOut(ctx context.Context, q *store.Request) {
	if q.Op != store.RequestRemove || q.Done.IsZero() || q.Error != "" {
		return
	}
	before, tried := r.outcome(q.ID)
	if tried && before == nil {
		return
	}
	if r.superseded(ctx, q) {
		r.note(q, nil)
		return
	}
	if r.catalog.knows(q.Certificate) {
		return
	}
	err := r.hap.Remove(ctx, q.Certificate, q.Force)
	if ctx.Err() == nil {
		r.complain(q.Certificate, err, before)
	}
	r.note(q, err)
}

// superseded reports whether what is here was issued after the removal: then nothing of it is left to carry out, also when the store
// goes back to a time in which nobody knew the new certificate. CAs date back, so where the store knows it its own time counts.
func (r *removal) superseded(ctx context.Context, q *store.Request) bool {
	b, err := r.hap.OnDisk(ctx, q.Certificate, "")
	if err != nil || b == nil {
		return false
	}
	stored := r.catalog.issued(q.Certificate)
	return !b.NotBefore.Before(q.Done) || stored != nil && stored.Fingerprint == b.Fingerprint && !stored.IssuedAt.Before(q.Done)
}

// note keeps how a removal ended here.
func (r *removal) note(q *store.Request, err error) {
	r.catalog.mu.Lock()
	r.done[q.ID] = err
	r.catalog.mu.Unlock()
	if err == nil {
		r.remember()
	}
}

// complain logs a cause once, not at every try: HAProxy may be stopped for days.
func (r *removal) complain(name string, err, before error) {
	switch {
	case err == nil && before != nil:
		r.log.Info("the removed certificate is out of HAProxy", "certificate", name)
	case err == nil || before != nil && cause(err) == cause(before):
	default:
		r.log.Warn("a removed certificate is still in HAProxy", "certificate", name, "err", err)
	}
}

// cause tells errors apart. A HAProxy that can't be reached is one cause, however far it has come in starting.
func cause(err error) string {
	if errors.Is(err, dataplane.ErrDown) {
		return dataplane.ErrDown.Error()
	}
	return err.Error()
}

// outcome says whether a removal was tried here, and how that ended.
func (r *removal) outcome(id string) (err error, tried bool) {
	r.catalog.mu.RLock()
	defer r.catalog.mu.RUnlock()
	err, tried = r.done[id]
	return err, tried
}
