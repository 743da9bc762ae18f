package consul

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// ackPace is the least time between two writes of a node's ack.
const ackPace = 50 * time.Millisecond

// ackRecord is what a node says of itself, at most 200 bytes without its keys. It is bound to the node's session: there is one
// for each live node.
type ackRecord struct {
	Instance   string   `json:"i"`
	Boot       string   `json:"b"`
	Role       Role     `json:"r"`
	Epoch      string   `json:"e,omitempty"`
	Generation uint64   `json:"g"`           // the highest in its token table
	Whole      uint64   `json:"w,omitempty"` // index of its last read of the challenges, when it has acked all of that read
	Seq        uint64   `json:"s"`           // of the feed
	Keys       []string `json:"k,omitempty"` // ids of its sealing keys
	CAs        string   `json:"c,omitempty"` // digest of the CAs that it would order from
	Answer     string   `json:"q,omitempty"` // the last question that it answered
}

// followTable says that from now on the token table is only as new as tableIs says.
func (m *member) followTable() (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.follows++
	m.progress = time.Now()
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.follows--
	}
}

// tableRead notes a read of the challenges: the highest generation in it, and its index. In a new epoch numbers may come again.
func (m *member) tableRead(epoch string, highest, index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch != m.read {
		m.read, m.highest, m.index = epoch, 0, 0
	}
	m.highest, m.index = max(m.highest, highest), max(m.index, index)
	m.present = highest
	m.owes = m.owes || highest > m.acks
}

// tableIs says that everything that was read in epoch has been handled.
func (m *member) tableIs(epoch string) {
	m.mu.Lock()
	if m.table != epoch {
		m.acks = min(m.acks, m.highest) // what was acked in another epoch may have been of another history
	}
	m.table = epoch
	m.lost = false
	m.progress = time.Now()
	m.mu.Unlock()
	m.poke()
}

// tableLost says that the challenges can't be read.
func (m *member) tableLost() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = true
}

// TableInStep reports whether whoever follows the challenges is told of what is new. It is false from a read that failed until
// what the next one brings is handled: then there may be tokens in Consul that nobody here has heard of.
func (s *Store) TableInStep() bool {
	m := &s.member
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.lost
}

// stuck reports whether the token table has not been looked after for too long.
func (m *member) stuck() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.follows > 0 && time.Since(m.progress) > 2*(waitTime+waitTime/16)
}

// wanted returns what the ack should say.
func (m *member) wanted() (r ackRecord, acked bool) {
	s := m.s
	s.seen.mu.Lock()
	epoch, seq := s.seen.epoch, s.seen.seq
	s.seen.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	r = ackRecord{
		Instance: s.instance, Boot: s.boot, Role: s.cfg.Role,
		Epoch: epoch, Generation: m.acks, Seq: seq, CAs: casDigest(s.cfg.CAs), Answer: m.answer,
	}
	if s.cfg.Keys != nil {
		r.Keys = s.cfg.Keys.IDs()
	}
	if m.follows > 0 {
		r.Epoch, r.Generation = m.table, min(m.acks, m.highest)
		if !m.owes {
			r.Whole = m.index
		}
	}
	return r, m.acked
}

// Ack implements store.Store. It returns when the fleet can see it; when Consul is out of reach that is an error, and
// Run goes on trying.
func (s *Store) Ack(ctx context.Context, generation uint64) error {
	if s.cfg.Role == RoleIssuer {
		return nil // it has no HAProxy, and nobody waits for it
	}
	m := &s.member
	m.mu.Lock()
	m.acked = true
	if m.follows > 0 {
		generation = min(generation, m.highest) // what the watch has not read yet it tells of, and that is acked then
	}
	m.acks = max(m.acks, generation)
	made := m.owes && generation >= m.present
	m.owes = m.owes && !made
	missed := made && m.acks < m.highest // what was over before it could be acked: only Whole tells that it is owed no more
	m.mu.Unlock()
	m.poke()
	if missed {
		m.sayAll()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		wanted, _ := m.wanted()
		m.mu.Lock()
		said, changed := m.said, m.changed
		m.mu.Unlock()
		if same(said, wanted) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("ack generation %d: not published yet: %w", generation, ctx.Err())
		}
	}
}

// same reports whether two acks say the same to a barrier. The rest may be a little behind.
func same(a, b ackRecord) bool {
	a.Seq, b.Seq, a.Whole, b.Whole = 0, 0, 0, 0
	return reflect.DeepEqual(a, b)
}

// casDigest tells apart what two processes would order from.
func casDigest(cas []string) string {
	if len(cas) == 0 {
		return ""
	}
	sorted := slices.Sorted(slices.Values(cas))
	return tag([]byte(strings.Join(sorted, "\n")))
}
