package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/spoacme/spoacme/store"
)

// catalog is the index of the records that this node goes by: what is wanted, issued, in flight and failing. It holds
// no chain and no key, so that 10,000 certificates take little memory.
type catalog struct {
	store   store.Store
	kinds   []store.Kind
	log     *slog.Logger
	changed func(names []string) // certificates that were issued or removed; nil for "any"
	read    chan struct{}        // closed when everything was read once

	mu      sync.RWMutex
	loaded  bool
	records map[store.Key]store.Record
	bad     map[string]error // what can't be read, by key
}

// catalogued are the kinds that the catalog holds. An edge may not read orders.
func catalogued(role string) []store.Kind {
	kinds := []store.Kind{store.KindWanted, store.KindIssued, store.KindAttempt, store.KindRequest}
	if role != roleEdge {
		kinds = append(kinds, store.KindOrder)
	}
	return kinds
}

func newCatalog(st store.Store, role string, log *slog.Logger, changed func([]string)) *catalog {
	return &catalog{store: st, kinds: catalogued(role), log: log, changed: changed, read: make(chan struct{}), records: map[store.Key]store.Record{}, bad: map[string]error{}}
}

// Run keeps the catalog as the store is, until ctx ends.
func (c *catalog) Run(ctx context.Context) error {
	return follow(ctx, c.store, c.log, c.apply, c.kinds...)
}

// follow calls apply for every change, and again with nil after it failed, until ctx ends.
func follow(ctx context.Context, st store.Store, log *slog.Logger, apply func(context.Context, []store.Key) error, kinds ...store.Kind) error {
	return st.Follow(ctx, func(keys []store.Key) { insist(ctx, log, "the store", apply, keys) }, kinds...)
}

// insist calls apply with what is news, and again with nil, for everything, after it failed, until it succeeds or ctx ends.
func insist[T any](ctx context.Context, log *slog.Logger, what string, apply func(context.Context, []T) error, news []T) {
	retry := backoff.NewExponentialBackOff()
	retry.MaxInterval = 30 * time.Second
	var since time.Time
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := apply(ctx, news)
		news = nil
		return struct{}{}, err
	}, backoff.WithBackOff(retry), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, d time.Duration) {
		if since.IsZero() {
			since = time.Now()
			log.Warn(what+" can't be read, trying again", "err", err, "in", d.Round(time.Millisecond))
		}
	}))
	if err == nil && !since.IsZero() {
		log.Info(what+" can be read again", "after", time.Since(since).Round(100*time.Millisecond).String())
	}
}

func (c *catalog) apply(ctx context.Context, keys []store.Key) error {
	if keys == nil {
		return c.reload(ctx)
	}
	for _, k := range keys {
		e, err := c.store.Get(ctx, k)
		if err == nil {
			err = usable(e)
		}
		switch {
		case err == nil:
			store.DropPEM(e.Record)
			c.put(k, e.Record)
		case errors.Is(err, store.ErrAbsent):
			c.put(k, nil)
		case errors.Is(err, store.ErrUnreadable):
			c.log.Error("a record can't be read; what is known of it stays in force", "err", err)
			c.spoilt(k, err)
		default:
			return err
		}
	}
	c.announce(keys)
	return nil
}

// usable says why a certificate that can be read can't be served: its key is another one's, for one. A listing has no keys, so
// that is seen when the record changes.
func usable(e store.Entry) error {
	if cert, ok := e.Record.(*store.Certificate); ok {
		if _, err := cert.Bundle(); err != nil {
			return &store.UnreadableError{Key: e.Key, Err: fmt.Errorf("%w: %w", errUnusable, err)}
		}
	}
	return nil
}

// errUnusable marks a certificate that can be read, and not served. A node that has a good one on disk offers it.
var errUnusable = errors.New("it can't be served")

// unusable reports whether a stored certificate is known to be such a one.
func (c *catalog) unusable(name string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return errors.Is(c.bad[store.Key{Kind: store.KindIssued, Name: name}.String()], errUnusable)
}

// stillBad looks again at what could be read and not used, of which a listing says nothing.
func (c *catalog) stillBad(ctx context.Context, fresh map[store.Key]store.Record, bad map[string]error) error {
	c.mu.RLock()
	before := slices.Collect(maps.Values(c.bad))
	c.mu.RUnlock()
	for _, err := range before {
		u, ok := errors.AsType[*store.UnreadableError](err)
		if !ok || u.Key.Kind != store.KindIssued || fresh[u.Key] == nil || bad[u.Key.String()] != nil {
			continue
		}
		e, err := c.store.Get(ctx, u.Key)
		if err == nil {
			err = usable(e)
		}
		switch {
		case errors.Is(err, store.ErrUnreadable):
			bad[u.Key.String()] = err
			if old, known := c.record(u.Key); known {
				fresh[u.Key] = old
			}
		case err != nil && !errors.Is(err, store.ErrAbsent):
			return err
		}
	}
	return nil
}

// reload reads everything. A record that can't be read keeps its last good form.
func (c *catalog) reload(ctx context.Context) error {
	fresh, bad := map[store.Key]store.Record{}, map[string]error{}
	for _, kind := range c.kinds {
		l, err := store.ListFacts(ctx, c.store, kind)
		if err != nil {
			return fmt.Errorf("list %s: %w", kind, err)
		}
		for _, e := range l.Entries {
			fresh[e.Key] = e.Record
		}
		for _, err := range l.Unreadable {
			key := err.Error()
			if u, ok := errors.AsType[*store.UnreadableError](err); ok {
				key = u.Key.String()
				if old, known := c.record(u.Key); known {
					fresh[u.Key] = old
				}
			}
			bad[key] = err
			c.log.Error("a record can't be read; what is known of it stays in force", "err", err)
		}
	}
	if err := c.stillBad(ctx, fresh, bad); err != nil {
		return err
	}
	c.mu.Lock()
	if !c.loaded {
		close(c.read)
	}
	c.records, c.bad, c.loaded = fresh, bad, true
	c.mu.Unlock()
	c.announce(nil)
	return nil
}

func (c *catalog) put(k store.Key, r store.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.bad, k.String())
	if r == nil {
		delete(c.records, k)
		return
	}
	c.records[k] = r
}

func (c *catalog) spoilt(k store.Key, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad[k.String()] = err
}

func (c *catalog) record(k store.Key) (store.Record, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.records[k]
	return r, ok
}

// announce tells which certificates HAProxy should have now.
func (c *catalog) announce(keys []store.Key) {
	if keys == nil {
		c.changed(nil)
		return
	}
	var names []string
	for _, k := range keys {
		if k.Kind == store.KindIssued {
			names = append(names, k.Name)
		}
	}
	if len(names) > 0 {
		c.changed(names)
	}
}

// lookup returns the record of a certificate of one kind; T is that kind's type.
func lookup[T store.Record](c *catalog, kind store.Kind, name string) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.records[store.Key{Kind: kind, Name: name}].(T)
	return r, ok
}

// all returns the records of one type, ordered by name.
func all[T store.Record](c *catalog) []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []T
	for _, r := range c.records {
		if t, ok := r.(T); ok {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return compareNames(a.Key().Name, b.Key().Name) })
	return out
}

func compareNames(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// knows reports whether a certificate is wanted or issued.
func (c *catalog) knows(name string) bool {
	_, issued := lookup[*store.Certificate](c, store.KindIssued, name)
	_, wanted := lookup[*store.Wanted](c, store.KindWanted, name)
	return issued || wanted
}

// state says whether the store was read, and what of it can't be.
func (c *catalog) state() (loaded bool, unreadable []error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, key := range slices.Sorted(maps.Keys(c.bad)) {
		unreadable = append(unreadable, c.bad[key])
	}
	return c.loaded, unreadable
}

// names returns the certificates that are issued.
func (c *catalog) names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []string
	for k := range maps.Keys(c.records) {
		if k.Kind == store.KindIssued {
			out = append(out, k.Name)
		}
	}
	slices.Sort(out)
	return out
}
