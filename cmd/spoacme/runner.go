package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/settings"
)

// runner finds out the settings and runs the sidecar with them. When a setting changes that can't change under a running
// sidecar (an address, the store, a fleet's CAs), the sidecar is ended and begun anew: in milliseconds, in the same process.
type runner struct {
	log        *slog.Logger
	level      *slog.LevelVar
	flags, env map[string]string
	newAccount bool

	hap *dataplane.HAProxy // nil with roleIssuer: there is no HAProxy beside it
	// refused is what is structural of the settings that did not work.
	refused []string

	mu sync.Mutex
	// said is the problems that were logged last, so that each is logged once; wrong are those that are no mere notes.
	said  map[string]bool
	wrong []string
}

// errAnew ends a sidecar whose settings changed.
var errAnew = errors.New("settings changed")

// The roles in a fleet that a sidecar treats differently; the third is "node".
const (
	roleIssuer = "issuer" // leads only
	roleEdge   = "edge"   // serves only
)

const waitForHAProxy = time.Second

func (r *runner) run(ctx context.Context) error {
	own, problems := r.load(nil)
	if err := fatal(problems, settings.FromHAProxy); err != nil {
		return err
	}
	if own.Role == roleIssuer {
		r.say(problems)
		if err := os.MkdirAll(own.State, 0o700); err != nil {
			return fmt.Errorf("make the state directory: %w: name another with --state, or give this user the right", err)
		}
		return r.generations(ctx, own)
	}
	socket, err := findSocket(own.Socket)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(own.State, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w: name another with --state, or give this user the right", err)
	}
	r.hap, err = dataplane.Open(dataplane.Config{Socket: socket, StateDir: own.State, Logger: r.log})
	if err != nil {
		return err
	}
	defer func() {
		if err := r.hap.Close(); err != nil {
			r.log.Warn("let go of HAProxy", "err", err)
		}
	}()
	s, err := r.first(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	return r.generations(ctx, s)
}

// generations runs one sidecar after the other, each with new settings. New settings that don't work (an address that
// is taken, a store that can't be opened) end nothing: the last good ones go on.
func (r *runner) generations(ctx context.Context, s settings.Settings) error {
	var good *settings.Settings
	for {
		r.level.Set(s.LogLevel)
		sc, err := newSidecar(r, s)
		if err == nil {
			err = sc.run(ctx)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errAnew):
			r.log.Info("settings changed, beginning anew with them")
			good, s = &sc.set, sc.next
		case good != nil && ctx.Err() == nil:
			r.log.Error("the new settings do not work, going on with the last good ones", "err", err)
			r.refused = structural(s)
			s, good = *good, nil
		default:
			return err
		}
	}
}

// first waits for the first settings: from HAProxy, or what was kept of them when it is down.
func (r *runner) first(ctx context.Context) (settings.Settings, error) {
	for waiting := false; ; waiting = true {
		s, problems, _, err := r.read(ctx)
		if err == nil {
			r.say(problems)
			return s, nil
		}
		if wrong := fatal(problems, ""); wrong != nil {
			return s, wrong
		}
		if !waiting && ctx.Err() == nil {
			r.log.Warn("waiting for HAProxy", "err", err)
		}
		select {
		case <-ctx.Done():
			return s, nil
		case <-time.After(waitForHAProxy):
		}
	}
}

// read returns the settings in force now: HAProxy's, or the last good ones when HAProxy can't be asked or when what it says
// can't be used. The problems are those of what it says; heard is false when it said nothing. An error means that there are none.
func (r *runner) read(ctx context.Context) (s settings.Settings, problems []settings.Problem, heard bool, err error) {
	env, err := r.hap.Env(ctx)
	if err != nil {
		s, problems, err = r.lastGood(nil, err)
		return s, problems, false, err
	}
	s, problems = r.load(&settings.Source{Name: settings.FromHAProxy, Values: env})
	if wrong := fatal(problems, ""); wrong != nil {
		s, problems, err = r.lastGood(problems, wrong)
		return s, problems, true, err
	}
	if err := r.hap.SaveEnv(settings.Ours(env)); err != nil {
		r.log.Warn("the settings can't be kept for a start without HAProxy", "err", err)
	}
	return s, problems, true, nil
}

func (r *runner) lastGood(problems []settings.Problem, why error) (settings.Settings, []settings.Problem, error) {
	kept, err := r.hap.LoadEnv()
	if err != nil {
		r.log.Warn("the settings of last time can't be read", "err", err)
	}
	if kept == nil {
		return settings.Settings{}, problems, why
	}
	s, more := r.load(&settings.Source{Name: settings.FromCache, Values: kept})
	if wrong := fatal(more, ""); wrong != nil {
		return s, append(problems, more...), wrong
	}
	if problems == nil {
		problems = more
	}
	return s, problems, nil
}

func (r *runner) load(haproxy *settings.Source) (settings.Settings, []settings.Problem) {
	sources := []settings.Source{
		{Name: settings.FromFlags, Values: r.flags},
		{Name: settings.FromEnvironment, Values: r.env},
	}
	if haproxy != nil {
		sources = append(sources, *haproxy)
	}
	return settings.Load(sources...)
}

// say logs every problem once, until it was gone in between.
func (r *runner) say(problems []settings.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := map[string]bool{}
	r.wrong = nil
	for _, p := range problems {
		text := p.Error()
		said[text] = true
		if p.Level != settings.Note {
			r.wrong = append(r.wrong, text)
		}
		switch {
		case r.said[text]:
		case p.Level == settings.Note:
			r.log.Info("setting", "note", text)
		default:
			r.log.Error("setting refused", "err", text)
		}
	}
	r.said = said
}

// problems returns what is wrong with the settings that were last read.
func (r *runner) problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.wrong)
}

// fatal joins the problems with which nothing should start, leaving out those of one source.
func fatal(problems []settings.Problem, except string) error {
	var errs []error
	for _, p := range problems {
		if p.Level == settings.Fatal && p.Source != except {
			errs = append(errs, p)
		}
	}
	return errors.Join(errs...)
}

// findSocket returns the stats socket: the one named, or the first of the usual ones that exists.
func findSocket(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	for _, path := range settings.UsualSockets() {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	usual := settings.UsualSockets()[0]
	if _, err := os.Stat(filepath.Dir(usual)); err == nil {
		return usual, nil
	}
	return "", fmt.Errorf("HAProxy's stats socket is not at any usual place (%s): name it with --socket or SPOACME_SOCKET", usual)
}
