package issuer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Shelf compares what one node has on disk with what the store has, and offers what is better: when the leader asks (see
// Fleet), and when the store goes back to something older. An offer is withdrawn when the store has caught up.
// The fields are set before it is used.
type Shelf struct {
	Store store.Store
	// Disk is as in Config.
	Disk func(ctx context.Context, name, fingerprint string) (*store.Bundle, error)
	// Stored returns the facts of a stored certificate, nil when there is none. Neither chain nor key is needed.
	Stored func(name string) *store.Certificate
	// Broken reports whether a stored certificate can be read and not be served. Nil: none is known to be.
	Broken func(name string) bool
	// Names lists the stored certificates.
	Names func() []string
	// Copy is as in Config.
	Copy store.Store
	// Offer and Withdraw write and delete this node's offer.
	Offer    func(context.Context, *store.Certificate) error
	Withdraw func(ctx context.Context, name string) error
	// Offered lists what this node offers, for a process that has just begun.
	Offered func(context.Context) ([]string, error)
	// Jitter is as in Config.
	Jitter func(time.Duration) time.Duration
	Logger *slog.Logger

	once    sync.Once
	mu      sync.Mutex
	all     bool
	changed map[string]bool
	offered map[string]bool
	wake    chan struct{}
}

func (s *Shelf) init() {
	s.once.Do(func() {
		s.changed, s.offered, s.wake, s.all = map[string]bool{}, map[string]bool{}, make(chan struct{}, 1), true
		if s.Jitter == nil {
			s.Jitter = rand.N[time.Duration]
		}
	})
}

// Poke makes Run compare the named certificates, or all when none is named.
func (s *Shelf) Poke(names ...string) {
	s.init()
	s.mu.Lock()
	for _, n := range names {
		s.changed[n] = true
	}
	s.all = s.all || len(names) == 0
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

const (
	// shelfSpread is within what time nodes that all have what the store has lost offer it: most of them see that another
	// one was faster.
	shelfSpread = 2 * time.Second
	shelfAgain  = 30 * time.Second
)

// Run compares until ctx ends.
func (s *Shelf) Run(ctx context.Context) error {
	s.init()
	s.resume(ctx)
	tick := time.NewTicker(shelfAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
			if names := s.offers(); len(names) > 0 {
				s.Poke(names...)
			}
			continue
		}
		if better := s.better(ctx, s.take()); len(better) > 0 {
			if sleep(ctx, s.Jitter(shelfSpread)) != nil {
				return nil
			}
			s.offer(ctx, better)
		}
	}
}

// resume learns what the process before offered.
func (s *Shelf) resume(ctx context.Context) {
	for s.Offered != nil {
		names, err := s.Offered(ctx)
		if err == nil {
			s.mark(true, names...)
			return
		}
		if sleep(ctx, 5*time.Second) != nil {
			return
		}
	}
}

func (s *Shelf) mark(offered bool, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if delete(s.offered, n); offered {
			s.offered[n] = true
		}
	}
}

// offers lists what is offered.
func (s *Shelf) offers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.offered))
}

// take returns the names to be compared.
func (s *Shelf) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := s.changed
	s.changed = map[string]bool{}
	if s.all {
		for _, n := range s.Names() {
			names[n] = true
		}
		maps.Copy(names, s.offered)
	}
	s.all = false
	return slices.Sorted(maps.Keys(names))
}

// better says which certificates are older in the store than here, and withdraws offers that are answered.
func (s *Shelf) better(ctx context.Context, names []string) []string {
	var better []string
	for _, name := range names {
		stored := s.Stored(name)
		broken, fingerprint := s.lookedFor(name)
		b, _ := s.Disk(ctx, name, fingerprint)
		if stored != nil && b != nil && (broken || b.NotBefore.After(stored.NotBefore) || !time.Now().Before(stored.NotAfter)) {
			better = append(better, name)
			continue
		}
		s.mu.Lock()
		stands := s.offered[name]
		s.mu.Unlock()
		if stands && (stored != nil || b == nil) {
			if err := s.Withdraw(ctx, name); err != nil {
				s.Logger.Debug("an offer is not withdrawn yet", "certificate", name, "err", err)
				continue
			}
			s.mark(false, name)
		}
	}
	return better
}

// lookedFor returns the fingerprint that the disk is compared with: none when what is stored under it is of no use.
func (s *Shelf) lookedFor(name string) (broken bool, fingerprint string) {
	if s.Broken != nil && s.Broken(name) {
		return true, ""
	}
	return false, fingerprintOf(s.Stored(name))
}

func fingerprintOf(c *store.Certificate) string {
	if c == nil {
		return ""
	}
	return c.Fingerprint
}

// offer offers those certificates that are still better.
func (s *Shelf) offer(ctx context.Context, names []string) {
	for _, name := range names {
		_, fingerprint := s.lookedFor(name)
		if err := s.Compare(ctx, name, fingerprint); err != nil && ctx.Err() == nil {
			s.Logger.Warn("a certificate that is better than the stored one is not offered yet", "certificate", name, "err", err)
			s.mark(true, name) // so that it is looked at again
		}
	}
}

// Answer compares certificates with what is said to be stored, by name and fingerprint, and offers what is better. It returns when
// everything that is to be offered is.
func (s *Shelf) Answer(ctx context.Context, stored map[string]string) error {
	s.init()
	for _, name := range slices.Sorted(maps.Keys(stored)) {
		if store.ValidName(name) != nil {
			continue
		}
		if err := s.Compare(ctx, name, stored[name]); err != nil {
			return err
		}
	}
	return nil
}

// Compare offers what is on disk under a name if it is better than what is stored.
func (s *Shelf) Compare(ctx context.Context, name, fingerprint string) error {
	s.init()
	b, err := s.Disk(ctx, name, fingerprint)
	if err != nil || b == nil || b.Check(time.Now(), nil) != nil {
		if err != nil {
			s.Logger.Debug("what is on disk can't be read", "certificate", name, "err", err)
		}
		return nil
	}
	var held *store.Bundle
	e, err := s.Store.Get(ctx, store.Key{Kind: store.KindIssued, Name: name})
	switch {
	case err == nil:
		held, _ = e.Record.(*store.Certificate).Bundle()
	case !errors.Is(err, store.ErrAbsent) && !errors.Is(err, store.ErrUnreadable):
		return err
	}
	if !newer(b, held, time.Now()) {
		return nil
	}
	if err := s.Offer(ctx, s.record(ctx, name, b)); err != nil {
		return err
	}
	s.mark(true, name)
	s.Logger.Info("a certificate on disk is better than the stored one; it is offered to the leader", "certificate", name, "serial", b.Serial)
	return nil
}

// record is all that is known here of a certificate on disk.
func (s *Shelf) record(ctx context.Context, name string, b *store.Bundle) *store.Certificate {
	if s.Copy != nil {
		c, err := get[*store.Certificate](ctx, s.Copy, store.KindIssued, name)
		if err == nil && c != nil && c.Fingerprint == b.Fingerprint {
			return c
		}
	}
	return certificateOf(name, b)
}

// newer reports whether a certificate may replace another one and was issued after it, or the other can't be served.
func newer(b, held *store.Bundle, now time.Time) bool {
	if b.Worse(held, now) != nil || held != nil && held.Fingerprint == b.Fingerprint {
		return false
	}
	return held == nil || held.Check(now, nil) != nil || b.NotBefore.After(held.NotBefore) ||
		b.NotBefore.Equal(held.NotBefore) && b.NotAfter.After(held.NotAfter)
}
