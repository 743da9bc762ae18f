package consul

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Drift says how what a node serves under a certificate's name differs from what the store holds.
type Drift struct {
	Fingerprint string    `json:"f,omitempty"` // SHA-1 of the leaf that is served; empty for none
	Cause       string    `json:"c"`           // why, and what to do
	Since       time.Time `json:"s"`
}

// driftRecord is the value of nodes/<n>/served.
type driftRecord struct {
	Version      int              `json:"v"`
	Certificates map[string]Drift `json:"certificates"`
	More         int              `json:"more,omitempty"` // how many did not fit
}

// maxDriftBytes bounds what a node says about its differences.
const maxDriftBytes = 32 << 10

// PublishDrift tells the fleet what this node serves that is not what the store holds; empty for no difference. It
// does not wait: Run writes it, again after every loss of the session.
func (s *Store) PublishDrift(drift map[string]Drift) {
	var value []byte
	if len(drift) > 0 {
		value = encodeDrift(drift)
	}
	s.member.mu.Lock()
	s.member.drift = value
	s.member.mu.Unlock()
	s.member.poke()
}

func encodeDrift(drift map[string]Drift) []byte {
	r := driftRecord{Version: 1, Certificates: maps.Clone(drift)}
	names := slices.Sorted(maps.Keys(drift))
	for {
		b, _ := json.Marshal(r) //nolint:errcheck // strings and times only
		if len(b) <= maxDriftBytes {
			return b
		}
		cut := max(len(names)/8, 1)
		for _, name := range names[len(names)-cut:] {
			delete(r.Certificates, name)
		}
		names = names[:len(names)-cut]
		r.More += cut
	}
}

// sayDrift writes what PublishDrift was told, if it is news.
func (m *member) sayDrift(ctx context.Context, session string) error {
	m.mu.Lock()
	drift, said := m.drift, m.saidDrift
	m.mu.Unlock()
	if bytes.Equal(drift, said) {
		return nil
	}
	key := m.s.keys.served(m.s.cfg.Node)
	if drift == nil {
		if err := m.s.c.remove(ctx, key); err != nil {
			return err
		}
	} else if ok, err := m.s.c.acquire(ctx, key, drift, session); err != nil || !ok {
		return cmp.Or(err, errGone)
	}
	m.mu.Lock()
	m.saidDrift = drift
	m.mu.Unlock()
	return nil
}

// Node is what the store knows of one node.
type Node struct {
	Name       string
	Live       bool // has a session
	Leads      bool
	Suspect    bool // missed a barrier of this process's
	Role       Role
	Generation uint64           // the highest in its token table
	Behind     bool             // has not said that it saw a change of the feed, although it had time to
	Keys       []string         // ids of its sealing keys
	Drift      map[string]Drift // by certificate; nil when it serves what the store holds
	MoreDrift  int
}

// Nodes lists the nodes that are live and those that still have demand or offers here, ordered by name.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	acks, err := s.listing.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	p, _, err := s.c.get(ctx, s.keys.feed(), 0)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	feed, _ := parseFeed(p) //nolint:errcheck // the watch reports it
	leader, err := s.Leader(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	nodes := map[string]*Node{}
	suspect := s.late.settle(acks.nodes, feed.Epoch)
	for name, r := range acks.nodes {
		nodes[name] = &Node{
			Name: name, Live: true, Leads: name == leader, Suspect: suspect[name], Role: r.Role,
			Generation: r.Generation, Behind: s.past.behind(r), Keys: r.Keys,
		}
	}
	if err := s.addNodes(ctx, nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	return slices.SortedFunc(func(yield func(Node) bool) {
		for _, n := range nodes {
			if !yield(*n) {
				return
			}
		}
	}, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) }), nil
}

// addNodes adds the nodes that are not live, and what each serves differently.
func (s *Store) addNodes(ctx context.Context, nodes map[string]*Node) error {
	node := func(name string) *Node {
		if nodes[name] == nil {
			nodes[name] = &Node{Name: name}
		}
		return nodes[name]
	}
	demands, _, err := s.c.names(ctx, s.keys.dir(string(store.KindDemand)), "", 0)
	if err != nil {
		return err
	}
	for _, key := range demands {
		if name, ok := nameBelow(s.keys.dir(string(store.KindDemand)), key); ok {
			node(name)
		}
	}
	keys, _, err := s.c.names(ctx, s.keys.dir("nodes"), "", 0)
	if err != nil {
		return err
	}
	for _, key := range keys {
		name, rest, ok := strings.Cut(strings.TrimPrefix(key, s.keys.dir("nodes")), "/")
		if !ok {
			continue
		}
		n := node(name)
		if rest != "served" {
			continue
		}
		p, _, err := s.c.get(ctx, key, 0)
		if err != nil {
			return err
		}
		var r driftRecord
		if p != nil && json.Unmarshal(p.Value, &r) == nil {
			n.Drift, n.MoreDrift = r.Certificates, r.More
		}
	}
	return nil
}

// Leader returns the name of the node that leads now, "" when there is none.
func (s *Store) Leader(ctx context.Context) (string, error) {
	p, _, err := s.c.get(ctx, s.keys.leader(), 0)
	if err != nil || p == nil || p.Session == "" {
		return "", err
	}
	var r leaderRecord
	if json.Unmarshal(p.Value, &r) != nil {
		return "", nil
	}
	return r.Node, nil
}

// Forget removes what a node left behind: its demand, offers and differences. A live node is not forgotten.
func (s *Store) Forget(ctx context.Context, node string) error {
	if err := store.ValidName(node); err != nil {
		return fmt.Errorf("forget node: %w", err)
	}
	p, _, err := s.c.get(ctx, s.keys.ack(node), 0)
	if err != nil {
		return fmt.Errorf("forget node %s: %w", node, err)
	}
	if p != nil && p.Session != "" {
		return fmt.Errorf("forget node %s: it is live: stop its sidecar first", node)
	}
	demand := s.keys.record(store.Key{Kind: store.KindDemand, Name: node})
	err = errors.Join(s.c.remove(ctx, s.keys.dir("nodes")+node+"/"), s.c.remove(ctx, s.keys.ack(node)), s.c.remove(ctx, demand))
	if err != nil {
		return fmt.Errorf("forget node %s: %w", node, err)
	}
	return nil
}
