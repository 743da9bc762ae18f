package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// renewsAgain is how soon a node renews its session again after that failed.
const renewsAgain = time.Second

// looksAgain is how often a node looks whether its ack is there.
const looksAgain = 3 * ttl

// ErrDuplicate means that another sidecar has this node's name.
var ErrDuplicate = errors.New("another sidecar has the same node name")

// member is this process as a live node of the fleet.
type member struct {
	s    *Store
	wake chan struct{}
	out  streak // of not being in the fleet
	// stayed holds one token when the session was renewed, or all of the ack counts: then it may say what nobody waits for.
	stayed chan struct{}

	mu               sync.Mutex
	running          bool
	acked            bool   // Ack was called: the first full read is done
	acks             uint64 // highest generation that was acked
	follows          int    // how many Follows watch the challenges
	read             string // epoch in which the last read of the challenges began
	highest          uint64 // generation in reads of that epoch
	present          uint64 // highest generation of the last read alone
	index            uint64 // of the newest read of that epoch
	owes             bool   // something that was read has not been acked since
	table            string // epoch that the token table has reached
	lost             bool   // the challenges could not be read, and were not handled since
	progress         time.Time
	registered       bool   // once at least
	answer           string // the last question that was answered
	said             ackRecord
	drift, saidDrift []byte        // encoded; nil for none
	changed          chan struct{} // closed when said changes
	epochs           map[*epochUser]bool
}

type epochUser struct {
	began string
	call  func()
}

func (m *member) init(s *Store) {
	m.s = s
	m.out.c = s.c
	m.wake, m.stayed = make(chan struct{}, 1), make(chan struct{}, 1)
	m.changed = make(chan struct{})
	m.epochs = map[*epochUser]bool{}
}

// onEpoch calls f once the epoch is not began any more.
func (m *member) onEpoch(began string, f func()) (stop func()) {
	u := &epochUser{began, f}
	m.mu.Lock()
	m.epochs[u] = true
	m.mu.Unlock()
	m.poke()
	return func() {
		m.mu.Lock()
		delete(m.epochs, u)
		m.mu.Unlock()
	}
}

// poke is called when anything may have changed that the ack depends on.
func (m *member) poke() {
	epoch := m.s.epoch()
	m.mu.Lock()
	for u := range m.epochs {
		if u.began != epoch {
			delete(m.epochs, u)
			u.call()
		}
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run keeps this node in the fleet: its session, its ack and its service, until ctx ends. It fails with ErrDuplicate when
// another sidecar has the same name.
func (s *Store) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	_, leave := s.feed.join() // keeps the epoch known
	defer leave()
	wg.Go(func() { s.registerService(ctx) })
	wg.Go(func() { s.keepFacts(ctx) })
	m := &s.member
	if s.cfg.Role == RoleIssuer {
		m.introduce()
	} else {
		m.setRunning(true)
		defer m.setRunning(false)
	}
	tries := s.c.newBackoff()
	patience := time.Now().Add(3 * ttl)
	for ctx.Err() == nil {
		start := time.Now()
		err := m.live(ctx)
		if errors.Is(err, ErrDuplicate) && time.Now().After(patience) {
			return fmt.Errorf("node %s: %w: give each its own SPOACME_NODE", s.cfg.Node, ErrDuplicate)
		}
		if !errors.Is(err, ErrDuplicate) {
			patience = time.Now().Add(3 * ttl)
		}
		if err != nil && ctx.Err() == nil {
			m.out.failed("this node is not in the fleet, trying again", err, "node", s.cfg.Node)
			if time.Since(start) > ttl {
				tries.Reset()
			}
			sleep(ctx, min(tries.NextBackOff(), 3*time.Second))
		}
	}
	return nil
}

// introduce lets a process with no HAProxy say which CAs and sealing keys it has: it may lead next. It has no tokens to ack.
func (m *member) introduce() {
	m.mu.Lock()
	m.acked = true
	m.mu.Unlock()
	m.poke()
}

func (m *member) setRunning(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = on
}

// live is one session of the node.
func (m *member) live(ctx context.Context) error {
	if err := m.retire(ctx); err != nil {
		return err
	}
	for {
		if _, acked := m.wanted(); acked && !m.stuck() {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
	}
	began := time.Now()
	session, err := m.s.c.session(ctx, "spoacme node "+m.s.cfg.Node, api.SessionBehaviorDelete)
	if err != nil {
		return err
	}
	defer m.end(ctx, session)
	term, lose := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer lose(nil)
	wg.Go(func() { lose(m.stay(term, session, began)) })
	tries := m.s.c.newBackoff()
	for all, first := true, true; ; first = false {
		err := m.say(term, session, all)
		switch {
		case err == nil:
			tries.Reset()
		case first || errors.Is(err, errGone):
			return err
		default:
			sleep(term, min(tries.NextBackOff(), renewsAgain))
		}
		select {
		case <-term.Done():
			if ctx.Err() != nil {
				return nil
			}
			return context.Cause(term)
		case <-m.wake:
			all = false
		case <-m.stayed:
			all = true
		}
	}
}

var (
	errGone  = errors.New("the session of this node is gone")
	errStuck = errors.New("given up, the token table is not being kept up to date")
)

// stay renews the session until ctx ends or the session is lost. No write of the ack holds that up.
func (m *member) stay(ctx context.Context, session string, renewed time.Time) error {
	looked := renewed
	for pause := renews; sleep(ctx, pause); {
		if m.stuck() {
			return fmt.Errorf("%w: %w", errGone, errStuck)
		}
		if time.Since(looked) > looksAgain {
			if err := m.isThere(ctx, session); err != nil {
				return err
			}
			looked = time.Now()
		}
		start := time.Now()
		alive, err := m.s.c.renew(ctx, session)
		switch {
		case err == nil && !alive:
			return errGone
		case err == nil:
			renewed, pause = start, renews
			m.sayAll()
		case time.Since(renewed) > ttl:
			return err
		default:
			pause = renewsAgain
		}
	}
	return nil
}

// isThere looks whether the ack is still what others can see: a session lives on when its key is deleted. That Consul can't tell
// says nothing.
func (m *member) isThere(ctx context.Context, session string) error {
	m.mu.Lock()
	said := m.said.Boot != ""
	m.mu.Unlock()
	p, _, err := m.s.c.get(ctx, m.s.keys.ack(m.s.cfg.Node), 0)
	if err == nil && said && (p == nil || p.Session != session) {
		return fmt.Errorf("%w: somebody deleted its ack", errGone)
	}
	return nil
}

// sayAll makes all of the ack be said.
func (m *member) sayAll() {
	select {
	case m.stayed <- struct{}{}:
	default:
	}
}

// say writes the ack if it is news, or if all of it counts.
func (m *member) say(ctx context.Context, session string, all bool) error {
	r, _ := m.wanted()
	m.mu.Lock()
	said := m.said
	m.mu.Unlock()
	if err := m.sayDrift(ctx, session); err != nil {
		return err
	}
	if same(said, r) && (!all || said.Seq == r.Seq && said.Whole == r.Whole) {
		return nil
	}
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	start := time.Now()
	ok, err := m.s.c.acquire(ctx, m.s.keys.ack(m.s.cfg.Node), value, session)
	if err != nil {
		m.poke() // again
		return err
	}
	if !ok {
		return fmt.Errorf("%w, or another sidecar has this node's name", errGone)
	}
	m.mu.Lock()
	m.registered = true
	m.mu.Unlock()
	m.setSaid(r)
	m.out.over("this node is in the fleet again", "node", m.s.cfg.Node)
	sleep(ctx, ackPace-time.Since(start))
	return nil
}

func (m *member) setSaid(r ackRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = r
	close(m.changed)
	m.changed = make(chan struct{})
}

// end takes the node out of the fleet.
func (m *member) end(ctx context.Context, session string) {
	m.setSaid(ackRecord{})
	m.mu.Lock()
	m.saidDrift = nil
	m.mu.Unlock()
	if err := m.s.c.destroy(ctx, session); err != nil {
		m.s.log.Info("the node's session was not ended; it expires by itself", "node", m.s.cfg.Node, "err", err)
	}
}

// retire ends the session of this installation's last process, which else would keep the name for 20 s and answer for
// a token table that is gone. Another installation's is not touched.
func (m *member) retire(ctx context.Context) error {
	pair, _, err := m.s.c.get(ctx, m.s.keys.ack(m.s.cfg.Node), 0)
	if err != nil || pair == nil || pair.Session == "" {
		return err
	}
	var r ackRecord
	if json.Unmarshal(pair.Value, &r) != nil || r.Instance != m.s.instance {
		return fmt.Errorf("%w (instance %.16q)", ErrDuplicate, r.Instance)
	}
	if m.cloned(r) {
		return fmt.Errorf("%w and a copy of this one's state directory", ErrDuplicate)
	}
	return m.s.c.destroy(ctx, pair.Session)
}

// cloned reports whether another process took the name from this one with the same instance id: not our predecessor,
// but the sidecar of a copied machine.
func (m *member) cloned(r ackRecord) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.registered && r.Boot != m.s.boot
}
