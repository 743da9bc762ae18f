// Package consul is the store of a fleet: the records of package store as keys in Consul's key-value store, one leader
// by a Consul lock, and what only a fleet has: nodes that say what they have applied and serve, offers of better
// certificates, and certificates that other tools put there.
//
// Everything lies below one prefix. The leader alone writes what belongs to the fleet, in transactions that prove its
// lock (writer.go); each node writes what is about itself. Nothing here decides what to issue or what to serve.
package consul

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/seal"
)

// Role says what a process may do in its fleet.
type Role string

// The roles. The zero Role is RoleNode.
const (
	RoleNode   Role = "node"   // serves and may lead
	RoleEdge   Role = "edge"   // serves only
	RoleIssuer Role = "issuer" // leads only
)

// Config says which Consul, which fleet and who we are. Only URL and Node are required.
type Config struct {
	// URL is consul://[host:port]/prefix[?dc=datacenter]. With no host the address is CONSUL_HTTP_ADDR, by default
	// 127.0.0.1:8500; with no prefix it is "le".
	URL string
	// Node is this sidecar's name, the only one of that name in the fleet.
	Node string
	Role Role
	// StateDir is a private directory that survives restarts: it tells a restarted sidecar from a second one of the
	// same name. Empty: nothing is kept.
	StateDir string
	// Keys seals private keys. Nil: only what is not sealed can be read and written.
	Keys *seal.Keys
	// Plain stores private keys as they are, and also writes each certificate in the form of the classic pipeline:
	// base64 of chain and key under certs/<name>.
	Plain bool
	// FromPlain is the way back from Plain, with Keys: what is stored plain is still read, the leader seals it, and its copies under
	// certs/ are deleted. Who may write to Consul could else pass a record off as the fleet's: it is for the time of the change.
	FromPlain bool
	// CAs are the directory URLs that this process orders from. It does not lead a fleet whose live nodes use others.
	CAs    []string
	Logger *slog.Logger // nil: none
	// Getenv gives Consul's standard environment (CONSUL_HTTP_TOKEN, CONSUL_CACERT, …). Nil: os.Getenv.
	Getenv func(string) string
	// Transport carries the requests to Consul, whose answers must have a status. Nil: connections to the address of URL, with
	// TLS and the token of the environment.
	Transport http.RoundTripper
	// Jitter draws a time from 0 up to, and not, its argument, which is positive: not all nodes ask at the same moment.
	// Nil: at random.
	Jitter func(time.Duration) time.Duration
}

// Store implements store.Store. Run must be running for Ack to work; everything else works without.
type Store struct {
	cfg  Config
	log  *slog.Logger
	c    *client
	keys layout

	instance string // this installation, kept in StateDir
	boot     string // this process
	retire   sync.Once

	feed    shared[feedState]
	acks    shared[ackTable]
	listing rounds[ackTable]
	seen    seen
	past    past
	member  member
	late    suspects
	silent  silent
	fresh   freshTable
	facts   facts
	lately  lately
	just    justRead
	decoded decoded
	leading atomic.Bool // between winning and losing the lock

	manifestList, wantedList sharedList

	metrics *metrics

	health        atomic.Pointer[health]
	healthChanged chan struct{}
}

var _ store.Store = (*Store)(nil)

// Open checks cfg and returns a Store. It does not speak to Consul: a server that is down is no error.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.N[time.Duration]
	}
	if cfg.Role == "" {
		cfg.Role = RoleNode
	}
	if err := store.ValidName(cfg.Node); err != nil {
		return nil, fmt.Errorf("open store: node: %w", err)
	}
	addr, err := parseURL(cfg.URL, cfg.Getenv)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger, keys: layout{addr.prefix}, boot: randomID(4),
		metrics: newMetrics(), healthChanged: make(chan struct{}, 1),
	}
	if s.c, err = newClient(addr, cfg, s.metrics); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if s.instance, err = keptID(cfg.StateDir, "instance"); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.feed.run = s.watchFeed
	s.acks.run = s.watchAcks
	s.listing.read = s.listAcks
	s.member.init(s)
	return s, nil
}

// seen is what this process knows of the fleet from the feed and the meta record.
type seen struct {
	mu    sync.Mutex
	epoch string // of the feed that was read last
	seq   uint64
	index uint64 // of that feed
	fleet string
	// floor is the least index at which a key that the feed announced may be read.
	floor map[store.Key]uint64
	// told is the last change of each key that the feed told of; last is the newest of all.
	told map[store.Key]toldChange
	last feedChange
	// unmet is the keys of which something else was read than the feed had told: the store has gone back meanwhile.
	unmet map[store.Key]bool
	// held tells which keys of ours every live node holds; nil while nobody knows.
	held map[string]bool
	// jumped is when the feed was last seen to be gone or an older one.
	jumped time.Time
	// contact is when Consul answered last.
	contact time.Time
}

// sleep waits for d. It reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
