package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/store"
)

// removal takes out of HAProxy what an operator removed. Nothing else does: a certificate that merely is not in the
// store stays as it is.
type removal struct {
	hap     *dataplane.HAProxy
	catalog *catalog
	log     *slog.Logger
	done    map[string]error // by request: how it ended here; nil error: removed
	wake    chan struct{}
}

func newRemoval(hap *dataplane.HAProxy, c *catalog, log *slog.Logger) *removal {
	return &removal{hap: hap, catalog: c, log: log, done: map[string]error{}, wake: make(chan struct{}, 1)}
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
	if err, tried := r.outcome(q.ID); tried && err == nil || r.catalog.knows(q.Certificate) {
		return
	}
	err := r.hap.Remove(ctx, q.Certificate, q.Force)
	if err != nil && ctx.Err() == nil {
		r.log.Warn("a removed certificate is still in HAProxy", "certificate", q.Certificate, "err", err)
	}
	r.catalog.mu.Lock()
	r.done[q.ID] = err
	r.catalog.mu.Unlock()
}

// outcome says whether a removal was tried here, and how that ended.
func (r *removal) outcome(id string) (err error, tried bool) {
	r.catalog.mu.RLock()
	defer r.catalog.mu.RUnlock()
	err, tried = r.done[id]
	return err, tried
}
