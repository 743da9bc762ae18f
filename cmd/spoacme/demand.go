package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"time"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
)

// demand keeps what this node's haproxy.cfg asks for as a record.
type demand struct {
	store store.Store
	log   *slog.Logger
	node  string
}

// want stores the demand when it changed. A certificate whose setting was refused is wanted as before.
func (d *demand) want(ctx context.Context, s settings.Settings) error {
	key := store.Key{Kind: store.KindDemand, Name: d.node}
	e, err := d.store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrAbsent) && !errors.Is(err, store.ErrUnreadable) {
		return fmt.Errorf("read what haproxy.cfg asked for: %w", err)
	}
	certificates := maps.Clone(s.Certificates)
	before, ok := e.Record.(*store.Demand)
	if ok {
		for _, name := range s.Refused {
			if spec, known := before.Certificates[name]; known {
				certificates[name] = spec
			}
		}
	}
	if ok && reflect.DeepEqual(before.Certificates, certificates) || !ok && len(certificates) == 0 {
		return nil
	}
	now := &store.Demand{Node: d.node, Certificates: certificates, Since: time.Now().UTC().Truncate(time.Second)}
	err = d.store.Commit(ctx, nil, []store.Precondition{{Key: key, Revision: e.Revision}}, []store.Op{store.Put(now)})
	if err != nil {
		return fmt.Errorf("store what haproxy.cfg asks for: %w", err)
	}
	d.log.Info("haproxy.cfg asks for certificates", "count", len(certificates))
	return nil
}
