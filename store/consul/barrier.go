package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store/seal"
)

// ackTable is the live processes.
type ackTable struct {
	nodes map[string]ackRecord
	index uint64
}

// serving are the nodes that have a HAProxy: those that a barrier and a question are about.
func (t ackTable) serving() map[string]bool {
	nodes := map[string]bool{}
	for name, r := range t.nodes {
		if r.Role != RoleIssuer {
			nodes[name] = true
		}
	}
	return nodes
}

func (s *Store) parseAcks(pairs api.KVPairs, index uint64) ackTable {
	t := ackTable{nodes: map[string]ackRecord{}, index: index}
	for _, p := range pairs {
		name, ok := nameBelow(s.keys.acks(), p.Key)
		var r ackRecord
		// What has no session was put there by hand, and nobody would take it away.
		if ok && p.Session != "" && json.Unmarshal(p.Value, &r) == nil {
			t.nodes[name] = r
		}
	}
	return t
}

func (s *Store) listAcks(ctx context.Context) (ackTable, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pairs, index, err := s.c.list(ctx, s.keys.acks(), 0)
	if err != nil {
		return ackTable{}, err
	}
	return s.parseAcks(pairs, index), nil
}

func (s *Store) watchAcks(ctx context.Context, publish func(ackTable)) {
	var last uint64
	read := func(ctx context.Context, index uint64) (ackTable, uint64, error) {
		pairs, index, err := s.c.list(ctx, s.keys.acks(), index)
		return s.parseAcks(pairs, index), index, err
	}
	watch(ctx, s.c, "the nodes' acks", read, func(t ackTable) bool {
		news := t.index != last
		last = t.index
		publish(t)
		return news
	})
}

// suspects are nodes that missed a barrier's deadline, with what they owe.
type suspects struct {
	mu    sync.Mutex
	owing map[string]debt
}

// debt is the generation that was waited for. It can't be acked any more when its order is over: a read of the challenges that
// is not older than its publication, and of which nothing is left to ack, is as good.
type debt struct {
	generation uint64
	index      uint64 // from the publication on, before it was taken back
}

// paid reports whether an ack of the same epoch makes up for what was missed.
func (d debt) paid(r ackRecord) bool { return r.Generation >= d.generation || r.Whole >= d.index }

// settle forgets the suspects that have caught up or are gone and returns the others.
func (s *suspects) settle(nodes map[string]ackRecord, epoch string) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := map[string]bool{}
	for node, owed := range s.owing {
		r, live := nodes[node]
		if !live || r.Epoch == epoch && owed.paid(r) {
			delete(s.owing, node)
		} else {
			left[node] = true
		}
	}
	return left
}

// add notes who missed a generation. With index 0, not known, only an ack of the generation makes up for it.
func (s *suspects) add(nodes []string, generation, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owing == nil {
		s.owing = map[string]debt{}
	}
	if index == 0 {
		index = math.MaxUint64
	}
	for _, n := range nodes {
		before := s.owing[n]
		s.owing[n] = debt{max(before.generation, generation), max(before.index, index)}
	}
}

// Barrier implements store.Store. The nodes that count are those with an ack when it is called, and this one. A node
// that missed the deadline of an earlier barrier is named but not waited for until it has caught up. When Consul does not
// tell before ctx ends who is live, that is an error: an old list would leave out those that have come since. So is a store that
// goes back in time: what was published may be gone, and nodes need a moment to say again that they are live.
func (s *Store) Barrier(ctx context.Context, generation uint64) (missing []string, err error) {
	began, published := time.Now(), s.fresh.lastCommit()
	if back := s.jumped().Add(rejoin); !sleep(ctx, time.Until(back)) && time.Now().Before(back) {
		return nil, fmt.Errorf("%w: they have until %s", errWentBack, back.Format(time.TimeOnly))
	}
	epoch, now, err := s.whoIsLive(ctx)
	if err != nil {
		return nil, fmt.Errorf("barrier: it is not known which nodes are live: %w", err)
	}
	missing = s.waitForAcks(ctx, epoch, now, generation, published)
	if s.jumped().After(began) {
		return nil, errWentBack
	}
	return missing, nil
}

var errWentBack = errors.New("barrier: it is not known which nodes are live: the store went back in time")

// waitForAcks returns the nodes of now that have not acked when ctx ends, or that are not waited for. The generation was published
// before an index.
func (s *Store) waitForAcks(ctx context.Context, epoch string, now ackTable, generation, published uint64) (missing []string) {
	waiting := now.serving()
	if s.member.counts() {
		waiting[s.cfg.Node] = true
	}
	suspect := s.late.settle(now.nodes, epoch)
	acks, leave := s.acks.join()
	defer leave()
	first := now.index
	for version := uint64(0); ; {
		if now.index >= first {
			settled(waiting, now.nodes, epoch, generation, s.cfg.Node)
		}
		if owed := without(waiting, suspect); len(owed) == 0 {
			return names(waiting)
		}
		var ok bool
		if now, version, ok = acks.next(ctx, version); !ok {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				s.late.add(names(waiting), generation, published)
			}
			return names(waiting)
		}
	}
}

// whoIsLive reads the acks and the epoch, again until it can.
func (s *Store) whoIsLive(ctx context.Context) (epoch string, now ackTable, err error) {
	tries := s.c.newBackoff()
	for {
		now, err = s.listing.get(ctx)
		if epoch = s.epoch(); err == nil && epoch == "" {
			var p *api.KVPair
			var f feedState
			if p, _, err = s.c.get(ctx, s.keys.feed(), 0); err == nil {
				f, err = parseFeed(p)
				epoch = f.Epoch
			}
		}
		if err == nil || ctx.Err() != nil {
			return epoch, now, err
		}
		sleep(ctx, tries.NextBackOff())
	}
}

// counts reports whether a barrier waits for this process even before it has registered.
func (m *member) counts() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// settled takes the nodes out that have acked, and those that are gone, but never ourselves.
func settled(waiting map[string]bool, nodes map[string]ackRecord, epoch string, generation uint64, self string) {
	for node := range waiting {
		r, live := nodes[node]
		if live && r.Epoch == epoch && r.Generation >= generation || !live && node != self {
			delete(waiting, node)
		}
	}
}

func without(all, some map[string]bool) []string {
	var rest []string
	for n := range all {
		if !some[n] {
			rest = append(rest, n)
		}
	}
	return rest
}

func names(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// agreeOnCAs says whether meta's list of CAs must be written, and refuses to lead a fleet whose live nodes order from
// others.
func (s *Store) agreeOnCAs(ctx context.Context, m *metaRecord) (write bool, err error) {
	if len(s.cfg.CAs) == 0 || casDigest(m.CAs) == casDigest(s.cfg.CAs) {
		return false, nil
	}
	if len(m.CAs) > 0 {
		now, err := s.listAcks(ctx)
		if err != nil {
			return false, err
		}
		for node, r := range now.nodes {
			if node != s.cfg.Node && r.Role != RoleEdge && r.CAs == casDigest(m.CAs) {
				return false, fmt.Errorf("%w: it would order from %v, but the fleet (node %s) orders from %v: give all nodes the "+
					"same SPOACME_CA, or this one another prefix in SPOACME_STORE", errUnfit, s.cfg.CAs, node, m.CAs)
			}
		}
		s.log.Info("the fleet orders from other CAs from now on", "before", m.CAs, "now", s.cfg.CAs)
	}
	m.CAs = s.cfg.CAs
	return true, nil
}

// watchNodes keeps up to date which of our sealing keys every live node has, for the leader seals only with those, and who is no longer
// suspect: that a node has caught up counts also when no barrier is there to see it.
func (s *Store) watchNodes(l *leaseTerm) {
	acks, leave := s.acks.join()
	defer leave()
	defer s.forgetHeld()
	for version := uint64(0); ; {
		t, v, ok := acks.next(l.ctx, version)
		if !ok {
			return
		}
		version = v
		s.late.settle(t.nodes, s.epoch())
		if s.cfg.Keys != nil {
			s.setHeld(t.nodes)
		}
	}
}

// setHeld notes which of our keys all live nodes have that have keys of the same keyset: an edge has none of the
// issuer's.
func (s *Store) setHeld(nodes map[string]ackRecord) {
	held := map[string]bool{}
	for _, id := range s.cfg.Keys.IDs() {
		held[id] = true
		for _, r := range nodes {
			if r.Role == RoleEdge && seal.IssuerKey(id) {
				continue
			}
			if !slices.Contains(r.Keys, id) {
				held[id] = false
			}
		}
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	s.seen.held = held
}

func (s *Store) forgetHeld() {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	s.seen.held = nil
}
