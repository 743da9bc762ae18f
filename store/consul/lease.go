package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// ttl of every session. Consul may let one live twice as long.
const ttl = 10 * time.Second

// renews is how often a session is renewed: there is time for two tries that hang before a lease ends. Of all that a node
// asks of Consul at rest this is half.
const renews = ttl / 2

// leaseTerm is one term as the leader: the lock, the session that holds it, and the writer. It implements store.Lease.
type leaseTerm struct {
	s       *Store
	session string
	ctx     context.Context
	cancel  context.CancelCauseFunc
	writer  *writer
	epoch   string
	before  uint64 // index of the last transaction of the terms before
	began   time.Time
	own     recent
	// sealedWith are the keys with which everything is sealed since Reseal looked, unused those that it found in no use.
	sealedWith string
	sealedAt   time.Time
	unused     []string
	written    chan struct{} // closed when the writer has ended
	done       chan struct{} // closed when everything has ended

	mu      sync.Mutex
	renewed time.Time // start of the last good renewal, by both clocks
}

// leaderRecord is the value of leader, for people to read, and for the process that comes after one that died.
type leaderRecord struct {
	Node     string    `json:"node"`
	Instance string    `json:"instance,omitempty"`
	Boot     string    `json:"boot,omitempty"`
	Since    time.Time `json:"since"`
}

// Lead implements store.Store.
func (s *Store) Lead(ctx context.Context) (store.Lease, error) {
	if s.cfg.Role == RoleEdge {
		return nil, fmt.Errorf("lead: %s is an edge, which never leads: set SPOACME_ROLE=node if it should", s.cfg.Node)
	}
	s.retire.Do(func() { s.retireLeader(ctx) })
	tries, failing := s.c.newBackoff(), streak{c: s.c}
	for ctx.Err() == nil {
		s.waitFree(ctx)
		l, err := s.tryLead(ctx)
		if l != nil {
			s.log.Info("this node leads the fleet", "node", s.cfg.Node)
			return l, nil
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		failing.failed("can't lead, trying again", err)
		if errors.Is(err, errUnfit) {
			sleep(ctx, unfitPause) // let others
		}
		sleep(ctx, tries.NextBackOff())
	}
	return nil, fmt.Errorf("lead: %w", ctx.Err())
}

// retireLeader ends the term of this installation's last process, which died in it: it would last up to 2 × ttl more. That is
// done once, at the start: of two copies of an installation none takes the lock away from the other again and again. Were
// that process alive after all, the fence would refuse what it writes.
func (s *Store) retireLeader(ctx context.Context) {
	p, _, err := s.c.get(ctx, s.keys.leader(), 0)
	if err != nil || p == nil || p.Session == "" {
		return // it expires by itself
	}
	var r leaderRecord
	if json.Unmarshal(p.Value, &r) != nil || r.Node != s.cfg.Node || r.Instance != s.instance || r.Boot == s.boot {
		return
	}
	s.log.Info("the term of this node's last process, which did not end it, is over", "node", s.cfg.Node)
	s.giveBack(ctx, p.Session)
}

// errUnfit means that this process should not lead although it could have the lock.
var errUnfit = errors.New("this node does not lead")

// unfitPause is how long such a process leaves the lock to others.
const unfitPause = 30 * time.Second

// fit looks, before the lock is taken, whether this process may lead.
func (s *Store) fit(ctx context.Context) error {
	meta, err := s.readMeta(ctx)
	if err != nil || meta == nil {
		return err
	}
	if _, err := s.agreeOnCAs(ctx, meta); err != nil {
		return err
	}
	return s.canOpen(ctx)
}

// waitFree returns when nobody holds the lock, or ctx ended.
func (s *Store) waitFree(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.watchLeader(ctx, func(p *api.KVPair) {
		if p == nil || p.Session == "" {
			cancel()
		}
	})
	// Not all candidates at the same moment.
	sleep(ctx, s.cfg.Jitter(20*time.Millisecond))
}

func (s *Store) watchLeader(ctx context.Context, got func(*api.KVPair)) {
	read := func(ctx context.Context, index uint64) (*api.KVPair, uint64, error) {
		return s.c.get(ctx, s.keys.leader(), index)
	}
	watch(ctx, s.c, "the leader's lock", read, func(p *api.KVPair) bool {
		got(p)
		return p != nil
	})
}

// tryLead returns nil and no error when someone else was faster.
func (s *Store) tryLead(ctx context.Context) (*leaseTerm, error) {
	if err := s.fit(ctx); err != nil || ctx.Err() != nil {
		return nil, err
	}
	start := time.Now()
	session, err := s.c.session(ctx, "spoacme leader "+s.cfg.Node, api.SessionBehaviorRelease)
	if err != nil {
		return nil, err
	}
	value, _ := json.Marshal(leaderRecord{s.cfg.Node, s.instance, s.boot, start.UTC().Round(time.Second)}) //nolint:errcheck // plain fields
	ok, err := s.c.acquire(ctx, s.keys.leader(), value, session)
	if !ok || err != nil {
		s.giveBack(ctx, session)
		return nil, err
	}
	l := &leaseTerm{
		s: s, session: session, renewed: start, epoch: randomID(4),
		written: make(chan struct{}), done: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	l.writer = &writer{l: l, queue: make(chan *commit)}
	s.leading.Store(true)
	if err := l.begin(ctx); err != nil {
		s.leading.Store(false)
		l.cancel(err)
		s.giveBack(ctx, session)
		return nil, err
	}
	s.metrics.leading.Set(1)
	l.began = time.Now()
	go l.run()
	return l, nil
}

func (s *Store) giveBack(ctx context.Context, session string) {
	if err := s.c.destroy(ctx, session); err != nil {
		s.log.Info("a session was not ended; it expires by itself", "err", err)
	}
}

// run returns when the term and all its goroutines have ended and the session is given back.
func (l *leaseTerm) run() {
	defer close(l.done)
	var wg sync.WaitGroup
	wg.Go(l.writer.run)
	wg.Go(l.renew)
	wg.Go(l.watchClocks)
	wg.Go(func() { l.s.watchLeader(l.ctx, l.sawLeader) })
	wg.Go(func() { l.s.lookAfter(l) })
	wg.Wait()
	l.s.leading.Store(false)
	l.s.metrics.leading.Set(0)
	l.s.giveBack(l.ctx, l.session)
	l.s.log.Info("this node no longer leads the fleet", "node", l.s.cfg.Node, "err", context.Cause(l.ctx))
}

// Context implements store.Lease.
func (l *leaseTerm) Context() context.Context { return l.ctx }

// Release implements store.Lease. It returns when the lock is free, or can't be freed now and expires.
func (l *leaseTerm) Release() {
	l.end(errors.New("released"))
	<-l.done
}

func (l *leaseTerm) end(cause error) { l.cancel(fmt.Errorf("%w: %w", store.ErrLeaseEnded, cause)) }

// holds returns why the lease is over, nil while it is not.
func (l *leaseTerm) holds() error {
	l.mu.Lock()
	renewed := l.renewed
	l.mu.Unlock()
	now := time.Now()
	// The monotonic clock stops while the machine is suspended, the wall clock may be set: the first one counts.
	if now.Sub(renewed) >= ttl || now.Round(0).Sub(renewed.Round(0)) >= ttl {
		l.end(fmt.Errorf("not renewed for %v", ttl))
	}
	return context.Cause(l.ctx)
}

// watchClocks ends the lease at its time, also after the machine or the process was stopped. A term does not outlive a restore
// either: what it has written may be gone, and the next write would be refused.
func (l *leaseTerm) watchClocks() {
	for l.holds() == nil {
		if l.s.jumped().After(l.began) {
			l.end(errors.New("the store went back in time"))
		}
		sleep(l.ctx, 100*time.Millisecond)
	}
}

// renew keeps the session alive. That alone proves nothing, see sawLeader.
func (l *leaseTerm) renew() {
	tries := l.s.c.newBackoff()
	for sleep(l.ctx, renews) {
		for l.ctx.Err() == nil {
			start := time.Now()
			alive, err := l.s.c.renew(l.ctx, l.session)
			if err != nil {
				l.s.log.Debug("lease not renewed, trying again", "err", err)
				sleep(l.ctx, min(tries.NextBackOff(), time.Second))
				continue
			}
			if !alive {
				l.end(errors.New("the session was ended by Consul"))
				return
			}
			tries.Reset()
			l.mu.Lock()
			l.renewed = start
			l.mu.Unlock()
			break
		}
	}
}

// sawLeader looks at the lock: a session may live on although the lock is gone.
func (l *leaseTerm) sawLeader(p *api.KVPair) {
	switch {
	case p == nil:
		l.end(errors.New("the lock was deleted"))
	case p.Session == "":
		l.end(errors.New("the lock was released"))
	case p.Session != l.session:
		l.end(errors.New("another node holds the lock"))
	}
}
