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
	store  store.Store
	log    *slog.Logger
	node   string
	alone  bool // no other node uses the store
	looked time.Time
}

const (
	// demandEvery is how often the record is looked at: who deletes the store deletes it too.
	demandEvery = 30 * time.Second
	// demandAgain is how often the node says that it is still there. The leader counts the days of those that are not.
	demandAgain = 6 * time.Hour
)

func (d *demand) stale() bool { return time.Since(d.looked) >= demandEvery }

// want stores the demand when it changed, was lost, or is to be said again. A certificate whose setting was refused is
// wanted as before.
func (d *demand) want(ctx context.Context, s settings.Settings) error {
	d.looked = time.Now()
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
	at := time.Now().UTC().Truncate(time.Second)
	now := &store.Demand{Node: d.node, Certificates: certificates, Since: at, Seen: at}
	same := ok && maps.EqualFunc(before.Certificates, certificates, func(a, b store.Spec) bool { return reflect.DeepEqual(a, b) })
	switch {
	case !ok && len(certificates) == 0, same && at.Sub(before.Seen).Abs() < demandAgain:
		return d.succeed(ctx)
	case same:
		now.Since = before.Since
	}
	err = d.store.Commit(ctx, nil, []store.Precondition{{Key: key, Revision: e.Revision}}, []store.Op{store.Put(now)})
	if err != nil {
		return fmt.Errorf("store what haproxy.cfg asks for: %w", err)
	}
	if !same {
		d.log.Info("haproxy.cfg asks for certificates", "count", len(certificates))
	}
	return d.succeed(ctx)
}

// succeed withdraws what this host asked for under another name, where there can be no other host.
func (d *demand) succeed(ctx context.Context) error {
	if !d.alone {
		return nil
	}
	l, err := d.store.List(ctx, store.KindDemand)
	if err != nil {
		return fmt.Errorf("look for demand of an earlier name: %w", err)
	}
	for _, e := range l.Entries {
		if e.Key.Name == d.node {
			continue
		}
		err := d.store.Commit(ctx, nil, []store.Precondition{{Key: e.Key, Revision: e.Revision}}, []store.Op{store.Delete(e.Key)})
		if err != nil {
			return fmt.Errorf("withdraw demand of an earlier name: %w", err)
		}
		d.log.Info("what haproxy.cfg asked for under another node name counts no longer", "node", e.Key.Name)
	}
	return nil
}
