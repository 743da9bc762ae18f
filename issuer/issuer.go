// Package issuer obtains certificates from ACME certificate authorities (RFC 8555) for everybody
// who shares a store. The one process that holds the store's lease merges what is asked for,
// decides what is due, and takes each order through its steps; every step that matters is in the
// store before the CA hears of it, so that whoever leads next goes on where this one stopped, and
// at most one certificate comes of one decision.
//
// It answers no challenge itself: it publishes the tokens as records and waits until the nodes have
// them (package spoa answers). It deploys nothing: it stores the certificate (package dataplane
// brings it to HAProxy).
package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spoacme/spoacme/store"
)

// CA is a certificate authority and how it knows us.
type CA struct {
	// Directory is the URL of its directory (RFC 8555 section 7.1.1); https only.
	Directory string

	// EABKeyID and EABKey bind the account to one that exists at the CA already (RFC 8555
	// section 7.3.4). EABKey is base64url, as CAs hand it out.
	EABKeyID string
	EABKey   string

	// Orders is how many new orders are placed within three hours at most: 0 for 250 at Let's
	// Encrypt (whose limit is 300) and any number elsewhere, negative for any number. Where a
	// limit applies, certificates for the same names are kept to 4 a week, too.
	Orders int

	id string // CAID, once computed
}

// Settings is what may change while the issuer runs; see Reconfigure.
type Settings struct {
	// CAs in order of preference. A certificate that fails through its CA's fault is tried at
	// the next one; an order that exists at a CA is finished there first.
	CAs []CA

	// Email is the account's contact; may be empty.
	Email string

	// HTTP carries the requests to the CAs: roots of a private one, a proxy. Nil for the system's
	// roots and the proxy of the environment. Only its Transport is used.
	HTTP *http.Client

	// NewAccount allows a new account where the store has certificates of a CA but not the
	// account that ordered them, or where the CA no longer knows the account.
	NewAccount bool
}

// Config is what an Issuer needs. Store and at least one CA must be given.
type Config struct {
	Store store.Store
	Settings

	// Fleet is the other nodes; nil for a node on its own.
	Fleet Fleet

	// Disk returns what this node has on disk under a certificate's name, nil when it has nothing or just what has the
	// given fingerprint. It may be nil.
	Disk func(ctx context.Context, name, fingerprint string) (*store.Bundle, error)

	// Copy is what KeepCopy keeps; it may be nil.
	Copy store.Store

	// Barrier is how long an order waits for nodes that have not its tokens yet; 5 s when zero.
	Barrier time.Duration

	// MaxOrders is how many orders are in flight at once; 50 when zero.
	MaxOrders int

	// UserAgent is what the CA sees in front of the library's own; "spoacme" when empty.
	UserAgent string

	// Jitter draws a time from 0 up to, and not, its argument, which is positive: what failed or was issued together is
	// not tried or renewed together. Random when nil.
	Jitter func(time.Duration) time.Duration

	// Logger may be nil.
	Logger *slog.Logger
}

// Issuer obtains and renews certificates while it leads.
type Issuer struct {
	store     store.Store
	fleet     Fleet
	disk      func(ctx context.Context, name, fingerprint string) (*store.Bundle, error)
	copy      store.Store
	barrier   time.Duration
	maxOrders int
	agent     string
	jitter    func(time.Duration) time.Duration
	log       *slog.Logger
	metrics   *metrics

	mu       sync.Mutex
	settings Settings
	changed  chan struct{} // closed and replaced by Reconfigure
}

// New checks the configuration. Nothing happens before Run.
func New(cfg Config) (*Issuer, error) {
	if cfg.Store == nil {
		return nil, errors.New("configure the issuer: a store is required")
	}
	i := &Issuer{
		store: cfg.Store, fleet: cfg.Fleet, disk: cfg.Disk, copy: cfg.Copy, barrier: cfg.Barrier, maxOrders: cfg.MaxOrders, agent: cfg.UserAgent, jitter: cfg.Jitter, log: cfg.Logger,
		metrics: newMetrics(), changed: make(chan struct{}),
	}
	if i.barrier <= 0 {
		i.barrier = 5 * time.Second
	}
	if i.maxOrders <= 0 {
		i.maxOrders = 50
	}
	if i.agent == "" {
		i.agent = "spoacme"
	}
	if i.jitter == nil {
		i.jitter = rand.N[time.Duration]
	}
	if i.log == nil {
		i.log = slog.New(slog.DiscardHandler)
	}
	return i, i.Reconfigure(cfg.Settings)
}

// Reconfigure replaces the settings, also while Run runs. Orders in flight are finished with the old
// ones; what failed through a CA's fault is tried again at once. After an error the settings in force stay.
func (i *Issuer) Reconfigure(s Settings) error {
	if err := s.validate(); err != nil {
		return err
	}
	s.CAs = slices.Clone(s.CAs)
	for n := range s.CAs {
		s.CAs[n].id = CAID(s.CAs[n].Directory)
	}
	if s.HTTP == nil {
		s.HTTP = defaultHTTP()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.settings = s
	close(i.changed)
	i.changed = make(chan struct{})
	return nil
}

// current returns the settings in force and a channel that is closed when they change.
func (i *Issuer) current() (Settings, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.settings, i.changed
}

func (s *Settings) validate() error {
	if len(s.CAs) == 0 {
		return errors.New("configure the issuer: no CA; name one, for example letsencrypt")
	}
	for n, ca := range s.CAs {
		u, err := url.Parse(ca.Directory)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("configure the issuer: CA %q: use the https:// URL of its directory", ca.Directory)
		}
		if (ca.EABKeyID == "") != (ca.EABKey == "") {
			return fmt.Errorf("configure the issuer: CA %s: external account binding needs both key id and HMAC key", ca.Directory)
		}
		if slices.ContainsFunc(s.CAs[:n], func(o CA) bool { return o.Directory == ca.Directory }) {
			return fmt.Errorf("configure the issuer: CA %s: named twice", ca.Directory)
		}
	}
	return nil
}

// ca returns the configured CA of a directory, or one that has nothing but the directory.
func (s *Settings) ca(directory string) CA {
	for _, ca := range s.CAs {
		if ca.Directory == directory {
			return ca
		}
	}
	return CA{Directory: directory, id: CAID(directory)}
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// CAID is the name of a CA's records: its host and 8 hex digits of the directory URL's hash.
func CAID(directory string) string {
	host := directory
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		host = u.Host
	}
	host = strings.Trim(notInName.ReplaceAllString(host, "-"), "-")
	if len(host) > 40 {
		host = host[:40]
	}
	return "ca-" + host + "-" + digest(directory)
}

// AccountID is the name of the account's record at a CA. With external account binding every key id
// has an account of its own.
func AccountID(ca CA) string {
	id := CAID(ca.Directory)
	if ca.EABKeyID != "" {
		id += "-" + digest(ca.EABKeyID)
	}
	return id
}

func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:4])
}
