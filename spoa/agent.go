package spoa

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/negasus/haproxy-spoe-go/request"
	"github.com/negasus/haproxy-spoe-go/worker"
)

const (
	// drainTime is how long a stopping agent goes on taking frames that
	// HAProxy sent before it knew.
	drainTime = 30 * time.Millisecond

	// knownEngines is how many engine ids are remembered. When there are
	// more all are forgotten, and reported again if they come again.
	knownEngines = 1024

	// maxEngine is the longest engine id; HAProxy sends 36 bytes.
	maxEngine = 128
)

// Config is what an agent needs. The zero value of each field but Table is
// replaced by a sane default.
type Config struct {
	// Table is where tokens are looked up. It must not be nil.
	Table *Table

	// Miss, if set, is asked for a token that the table does not have; it
	// reads the store. It must return when ctx ends. A token that it does
	// not have is not asked for again for a second.
	Miss func(ctx context.Context, token string) (keyAuth string, ok bool)

	// MissLimit is how many calls of Miss run at a time (16). A token beyond
	// them is unknown at once.
	MissLimit int

	// MissTimeout is how long a question waits for Miss (800 ms, because
	// HAProxy itself waits for one second).
	MissTimeout time.Duration

	// Engine, if set, is called with each engine id that HAProxy says hello
	// with and that was not seen lately, that is once for a new HAProxy
	// process, or once for each of its threads. Calls come one at a time;
	// no connection waits for them. It must return in bounded time.
	Engine func(id string)

	// Fit, if set, tells whether HAProxy's health checks succeed. One that
	// fails sends new questions to a backup server, if there is one.
	Fit func() bool

	// MaxConns is how many connections are served at a time (2048). Those
	// beyond are closed at once.
	MaxConns int

	// IdleTimeout is how long a connection may be silent between frames (5
	// minutes). It must be longer than the `timeout idle` of HAProxy's SPOE
	// configuration, or HAProxy meets closed connections.
	IdleTimeout time.Duration

	// FrameTimeout is how long a frame may take from its first byte to its
	// last, and how long HAProxy may take to say hello (2 s).
	FrameTimeout time.Duration

	// WriteTimeout is how long HAProxy may take to accept an answer (2 s).
	WriteTimeout time.Duration

	// Logger gets what an operator should know; what the internet asks for
	// is logged at debug level only. The default is to be silent.
	Logger *slog.Logger
}

// Agent answers HAProxy on one listener at a time.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	quiet  limiter
	misses *misses // nil without Config.Miss

	counters

	mu      sync.Mutex
	engines map[string]struct{}
	hello   chan string
}

// New returns an agent that answers from cfg.Table.
func New(cfg Config) *Agent {
	cfg.MissLimit = cmp.Or(cfg.MissLimit, 16)
	cfg.MissTimeout = cmp.Or(cfg.MissTimeout, 800*time.Millisecond)
	cfg.MaxConns = cmp.Or(cfg.MaxConns, 2048)
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, 5*time.Minute)
	cfg.FrameTimeout = cmp.Or(cfg.FrameTimeout, 2*time.Second)
	cfg.WriteTimeout = cmp.Or(cfg.WriteTimeout, 2*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		cfg:     cfg,
		log:     cfg.Logger,
		engines: make(map[string]struct{}),
		hello:   make(chan string, 16),
	}
	if cfg.Miss != nil {
		a.misses = &misses{
			fetch:    cfg.Miss,
			panicked: a.panicked,
			limit:    cfg.MissLimit,
			timeout:  cfg.MissTimeout,
			calls:    make(map[string]*call),
			absent:   make(map[string]time.Time),
		}
	}
	return a
}

// Serve answers the connections of ln until ctx ends. Then it closes ln,
// answers the questions that have been sent, closes all connections and
// returns nil, within a few seconds. An error means that ln broke.
func (a *Agent) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	events, cancelEvents := context.WithCancel(context.WithoutCancel(ctx))
	var background, serving sync.WaitGroup
	background.Go(func() { a.report(events) })

	open := &openConns{conns: make(map[*conn]struct{})}
	err := a.accept(ctx, ln, func(c *conn) {
		open.add(c)
		serving.Go(func() {
			defer open.remove(c)
			a.handle(context.WithoutCancel(ctx), c)
		})
	})
	_ = ln.Close() // a second time, or the listener is broken anyway
	open.drain(time.Now().Add(drainTime))
	serving.Wait()
	if a.misses != nil {
		a.misses.running.Wait()
	}
	cancelEvents()
	background.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// accept gives every connection within the limit to serve, and returns when
// ln is closed or broken. Running out of file descriptors or memory is waited
// out.
func (a *Agent) accept(ctx context.Context, ln net.Listener, serve func(*conn)) error {
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return nil
		case !passing(err):
			return fmt.Errorf("accept connection on %s: %w", ln.Addr(), err)
		default:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			if a.quiet.allow() {
				a.log.Warn("cannot accept connections; raise the limit of open files if this persists", "err", err)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		a.accepted.Add(1)
		if a.open.Add(1) > int64(a.cfg.MaxConns) {
			a.open.Add(-1)
			a.turnedAway.Add(1)
			_ = nc.Close() // the peer sees the end either way
			if a.quiet.allow() {
				a.log.Warn("too many connections, closing new ones; is another program connecting to the agent's address?", "limit", a.cfg.MaxConns)
			}
			continue
		}
		serve(newConn(nc, a))
	}
}

// passing reports whether an accept may succeed when it is tried again.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// handle serves one connection. Nothing that happens to it reaches the others.
func (a *Agent) handle(ctx context.Context, c *conn) {
	defer a.open.Add(-1)
	defer func() { _ = c.Close() }() // never fails
	defer func() {
		if p := recover(); p != nil {
			a.panicked(p)
		}
	}()
	worker.Handle(c, func(req *request.Request) { a.answer(ctx, req) }, libraryLog{a.log})
}

// ended takes note of why a connection ended.
func (a *Agent) ended(c *conn, err error) {
	for i, r := range refusals {
		if !errors.Is(err, r.err) {
			continue
		}
		a.refused[i].Add(1)
		if a.quiet.allow() {
			a.log.Warn("closed a connection that is not HAProxy's or is out of step; is the agent's address used by another program?",
				"peer", c.RemoteAddr().String(), "err", err)
		}
		return
	}
	if err != io.EOF {
		a.log.Debug("connection ended", "peer", c.RemoteAddr().String(), "err", err)
	}
}

// greet takes note of a HELLO, and passes the id of a new engine on.
func (a *Agent) greet(h header) {
	if h.healthcheck {
		a.checks.Add(1)
		return
	}
	if h.engine == "" || len(h.engine) > maxEngine || a.cfg.Engine == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, seen := a.engines[h.engine]; seen {
		return
	}
	select {
	case a.hello <- h.engine:
		if len(a.engines) >= knownEngines {
			clear(a.engines)
		}
		a.engines[h.engine] = struct{}{}
	default: // not remembered, so its next connection reports it
	}
}

// report calls Config.Engine for each new engine until ctx ends.
func (a *Agent) report(ctx context.Context) {
	for {
		select {
		case id := <-a.hello:
			a.cfg.Engine(id)
		case <-ctx.Done():
			return
		}
	}
}

// openConns are the connections of one listener.
type openConns struct {
	mu    sync.Mutex
	conns map[*conn]struct{}
}

func (o *openConns) add(c *conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conns[c] = struct{}{}
}

func (o *openConns) remove(c *conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

// drain ends all connections at the given time, or sooner.
func (o *openConns) drain(by time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		c.drain(by)
	}
}

// libraryLog is the library's logger. What it has to say is about single
// connections that are gone.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Errorf(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("connection ended", "err", fmt.Sprintf(format, args...))
	}
}

// limiter allows one line in ten seconds, so that no peer fills the log.
type limiter struct{ next atomic.Int64 }

func (l *limiter) allow() bool {
	now := time.Now().UnixNano()
	next := l.next.Load()
	return now >= next && l.next.CompareAndSwap(next, now+int64(10*time.Second))
}
