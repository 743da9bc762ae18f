// Package dataplane is the sidecar's hand on HAProxy: it reads settings and certificates from the running
// process over its stats socket (client-native), writes PEM files and crt-list lines, and swaps certificates
// into HAProxy with no reload. HAProxy serves what the store has, on start, after every reload, after every
// change; where it can't be so, the report says why and what to do.
//
// What should be served, and when, is its caller's business (see Source). Nothing that HAProxy, the disk or
// another tool says is trusted: answers are bounded, whole or an error, and read back after every write.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// Config says where HAProxy is. Only Socket and StateDir are needed.
type Config struct {
	// Socket is the path of HAProxy's stats socket (level admin).
	Socket string
	// StateDir is a private directory of the sidecar: what was last read from HAProxy is kept there.
	StateDir string
	// CrtDir is the directory of the PEM files, CrtList the crt-list file or certificate directory of HAProxy
	// that they are added to. Empty: see Locate.
	CrtDir, CrtList string
	// Logger may be nil.
	Logger *slog.Logger

	timing timing
}

// timing is what tests shorten.
type timing struct {
	poll     time.Duration // how often HAProxy is asked who it is
	quick    time.Duration // the same while a swap is not confirmed
	confirm  time.Duration // how long the same process must have been there after a swap
	full     time.Duration // how often everything is compared
	patience time.Duration // how long another tool's transaction may stay unchanged
	retry    time.Duration // first wait after a failure; doubles up to full
	command  time.Duration // of one command
	grace    time.Duration // from a crt-list line's deletion to its file's
}

func (t timing) withDefaults() timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.poll, time.Second)
	set(&t.quick, 200*time.Millisecond)
	set(&t.confirm, 10*time.Second)
	set(&t.full, time.Minute)
	set(&t.patience, time.Minute)
	set(&t.retry, time.Second)
	set(&t.command, commandTimeout)
	set(&t.grace, 30*time.Second)
	return t
}

// HAProxy is one running HAProxy and its files. Its methods may be called at once.
type HAProxy struct {
	log     *slog.Logger
	dir     string // StateDir
	wire    *wire
	timing  timing
	metrics metrics
	wake    chan struct{}

	cacheMu sync.Mutex // the cache file
	filesMu sync.Mutex
	files   map[string]stamp // PEM files as last seen, by certificate

	unit chan struct{} // one token: files and swaps are changed by one goroutine at a time

	// Below: guarded by unit.
	stray   stray        // another tool's open transaction, as last seen
	list    crtList      // the crt-list file, as last read
	lock    *flock.Flock // on place.CrtDir
	locked  string       // the directory that lock is on
	buffer  buffer
	saved   Place             // in the cache
	refused map[string]string // in the cache, too: by name, the fingerprint that HAProxy has refused last
	wrecked Process           // in the cache, too: must not be given certificates

	mu         sync.Mutex // guards all below
	place      Place      // where certificates go; zero until it is known
	asked      Place      // what the configuration says; wins over what HAProxy has loaded
	states     map[string]*State
	proc       Process
	wanted     map[string]bool // fingerprints that the store has
	poked      map[string]bool
	all        bool      // compare everything
	away       bool      // HAProxy did not answer last time
	err        error     // of the last turn
	trouble    trouble   // and of those before
	nextAll    time.Time // when everything is compared next
	comparedAt time.Time
	failures   int                  // comparisons in a row
	swaps      map[string]time.Time // not confirmed yet
}

// Place is where certificates go.
type Place struct {
	CrtDir  string `json:"crt_dir"`  // directory of the PEM files
	CrtList string `json:"crt_list"` // a crt-list file, or a certificate directory (then usually CrtDir)
}

// Open prepares to speak with HAProxy, which need not be running. Close must be called.
func Open(c Config) (*HAProxy, error) {
	if c.Socket == "" {
		return nil, errors.New("open HAProxy: no stats socket; give its path with --socket or SPOACME_SOCKET")
	}
	if c.StateDir == "" {
		return nil, errors.New("open HAProxy: no state directory")
	}
	w, err := newWire(c.Socket)
	if err != nil {
		return nil, fmt.Errorf("open HAProxy: %w", err)
	}
	h := &HAProxy{
		log: c.Logger, dir: c.StateDir, wire: w, timing: c.timing.withDefaults(), metrics: newMetrics(),
		wake: make(chan struct{}, 1), unit: make(chan struct{}, 1),
		files: map[string]stamp{}, refused: map[string]string{}, states: map[string]*State{},
		wanted: map[string]bool{}, poked: map[string]bool{}, swaps: map[string]time.Time{}, all: true,
		asked: Place{CrtDir: cleanDir(c.CrtDir), CrtList: cleanDir(c.CrtList)},
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h, nil
}

// Close lets go of HAProxy and of the certificate directory. Run must have returned.
func (h *HAProxy) Close() error {
	err := h.wire.close()
	if h.lock != nil {
		err = errors.Join(err, h.lock.Unlock())
	}
	return err
}

// SetPlace tells what the settings now say about where certificates go; empty fields as in Config.
func (h *HAProxy) SetPlace(crtDir, crtList string) {
	p := Place{CrtDir: cleanDir(crtDir), CrtList: cleanDir(crtList)}
	h.mu.Lock()
	changed := h.asked != p
	if changed {
		h.asked, h.place = p, Place{}
	}
	h.mu.Unlock()
	if changed {
		h.Poke()
	}
}

// Poke makes Run look at the named certificates now, or at everything when none is named. HAProxy's HELLO to
// the SPOE agent is a reason for the latter.
func (h *HAProxy) Poke(names ...string) {
	h.mu.Lock()
	for _, n := range names {
		h.poked[n] = true
	}
	h.all = h.all || len(names) == 0
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// take gets the right to change files and certificates.
func (h *HAProxy) take(ctx context.Context) error {
	select {
	case h.unit <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *HAProxy) release() { <-h.unit }

func cleanDir(p string) string {
	if p == "" {
		return ""
	}
	return filepath.Clean(p)
}
