package issuer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/spoacme/spoacme/store"
)

const (
	leadPause = time.Second           // after a term that failed
	passPause = 10 * time.Millisecond // between two passes
	lookAgain = time.Minute           // at the latest: clocks jump
	farewell  = 2 * time.Second       // to withdraw tokens when the process ends
)

// Run leads whenever the store lets it, until ctx ends. While it leads it carries out requests, merges demand, and orders what
// is due. It returns nil when ctx ended, after all its work has.
func (i *Issuer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		lease, err := i.store.Lead(ctx)
		if err != nil {
			if ctx.Err() == nil {
				i.log.Warn("can't lead; trying again", "err", err)
			}
			_ = sleep(ctx, leadPause)
			continue
		}
		i.metrics.leading.Set(1)
		err = i.lead(ctx, lease)
		i.metrics.leading.Set(0)
		lease.Release()
		if err != nil && ctx.Err() == nil {
			i.log.Warn("no longer leading", "err", err)
			_ = sleep(ctx, leadPause)
		}
	}
	return nil
}

// term is the time of one lease.
type term struct {
	*Issuer
	lease store.Lease
	ctx   context.Context // ends with the lease and with Run

	publications chan publication
	generation   uint64 // the publisher's
	inquiries    chan inquiry
	barriers     singleflight.Group

	opening   singleflight.Group
	clientsMu sync.Mutex
	clients   map[string]*client

	looking   singleflight.Group
	issuersMu sync.Mutex
	issuers   []*store.Bundle // see issuersOf
	issuersAt time.Time

	inFlight atomic.Int64
	orders   sync.WaitGroup
	wake     chan struct{} // holds one token while there is news
	newsMu   sync.Mutex
	news     news

	desk // the loop's own
}

// news is what happened since the last pass.
type news struct {
	all      bool // anything may have changed
	offers   bool // nodes may offer something
	keys     map[store.Key]bool
	outcomes []outcome
}

// outcome is how a try ended.
type outcome struct {
	name    string
	ca      string // directory
	placed  bool   // a recorded order was gone on with
	plan    *plan  // nil when it came to no decision
	err     error
	stopped bool // its context ended
	began   time.Time
}

// lead works until the lease or ctx ends and returns why.
func (i *Issuer) lead(ctx context.Context, lease store.Lease) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(lease.Context(), func() { cancel(context.Cause(lease.Context())) })
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	t := &term{
		Issuer: i, lease: lease, ctx: gctx,
		publications: make(chan publication), inquiries: make(chan inquiry), clients: map[string]*client{}, wake: make(chan struct{}, 1),
		desk: newDesk(),
	}
	t.news.keys = map[store.Key]bool{}
	if err := t.reclaim(gctx); err != nil {
		return err
	}
	if err := t.index.load(gctx, t.store); err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	t.firstGeneration(t.index)
	g.Go(func() error { return t.publisher(gctx) })
	g.Go(func() error {
		err := t.store.Follow(gctx, t.changedKeys, watched...)
		if err == nil && gctx.Err() == nil {
			err = errors.New("the store stopped telling of changes")
		}
		return err
	})
	if t.fleet != nil {
		g.Go(func() error { return t.asker(gctx) })
		g.Go(func() error { return t.reseal(gctx) })
		g.Go(func() error { return t.fleet.FollowOffers(gctx, t.offered) })
	}
	g.Go(func() error { return t.loop(gctx) })
	err := g.Wait()
	t.farewell()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// changedKeys notes what the store says has changed.
func (t *term) changedKeys(keys []store.Key) {
	t.newsMu.Lock()
	t.news.all = t.news.all || keys == nil
	for _, k := range keys {
		t.news.keys[k] = true
	}
	t.newsMu.Unlock()
	t.ring()
}

// offered notes that there are other offers.
func (t *term) offered() {
	t.newsMu.Lock()
	t.news.offers = true
	t.newsMu.Unlock()
	t.ring()
}

func (t *term) report(o outcome) {
	t.newsMu.Lock()
	t.news.outcomes = append(t.news.outcomes, o)
	t.newsMu.Unlock()
	t.ring()
}

func (t *term) ring() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *term) takeNews() news {
	t.newsMu.Lock()
	defer t.newsMu.Unlock()
	n := t.news
	t.news = news{keys: map[store.Key]bool{}}
	return n
}

// loop makes a pass whenever something happened, and when the last pass said so.
func (t *term) loop(ctx context.Context) error {
	defer t.orders.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	_, reconfigured := t.current()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-timer.C:
		case <-reconfigured:
			_, reconfigured = t.current()
			t.reconfigured()
		}
		t.thinking = 0
		next, err := t.pass(ctx)
		if err != nil && ctx.Err() == nil {
			t.log.Warn("can't go on; trying again", "err", err)
			next = time.Now().Add(leadPause)
		}
		pause := lookAgain
		if !next.IsZero() {
			pause = min(max(time.Until(next), passPause), lookAgain)
		}
		timer.Reset(pause)
		if err := sleep(ctx, max(passPause, 3*t.thinking)); err != nil { // with very many certificates passes take long
			return nil
		}
	}
}

// reconfigured makes the next orders use the settings now in force, and lets what failed through a CA's fault try anew.
func (t *term) reconfigured() {
	t.forget()
	t.settingsAt = time.Now()
	clear(t.outages)
	clear(t.held)
}

// farewell withdraws the tokens of orders that this process leaves unfinished, if it still leads.
func (t *term) farewell() {
	if t.lease.Context().Err() != nil || len(t.running) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.lease.Context(), farewell)
	defer cancel()
	var ops []store.Op
	for _, name := range slices.Sorted(maps.Keys(t.running)) {
		ops = append(ops, store.Delete(store.Key{Kind: store.KindChallenges, Name: name}))
	}
	for _, ops := range chunks(ops) {
		if err := t.store.Commit(ctx, t.lease, nil, ops); err != nil {
			t.log.Warn("tokens were not withdrawn; the next leader does it", "err", err)
			return
		}
	}
}
