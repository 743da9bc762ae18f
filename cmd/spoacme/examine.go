package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/check"
	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/status"
)

// examiner gathers the facts that check judges.
type examiner struct {
	files      []string
	flags, env map[string]string

	hap   *dataplane.HAProxy
	facts check.Facts
	view  *status.View // of the running sidecar
}

func (e *examiner) examine(ctx context.Context) (check.Facts, error) {
	r := &runner{flags: e.flags, env: e.env}
	own, problems := r.load(nil)
	if err := fatal(problems, settings.FromHAProxy); err != nil {
		return e.facts, usageError("%v", err)
	}
	f := &e.facts
	f.User, f.Root = userName(os.Geteuid()), os.Geteuid() == 0
	socket, err := findSocket(own.Socket)
	if err != nil {
		f.HAProxy.Err = err
		socket = "/nonexistent"
	}
	e.hap, err = dataplane.Open(dataplane.Config{Socket: socket, StateDir: own.State})
	if err != nil {
		return e.facts, err
	}
	f.HAProxy.Socket = socket
	if f.HAProxy.Err == nil {
		e.haproxy(ctx)
	}
	e.config()
	e.settings(r)
	e.hap.SetPlace(f.Settings.CrtDir, f.Settings.CrtList)
	if f.HAProxy.Err == nil {
		e.backends(ctx)
	}
	e.place(ctx)
	e.sidecar(ctx)
	e.store()
	g := new(errgroup.Group)
	g.Go(func() error { e.authorities(ctx); return nil })
	g.Go(func() error { e.challenge(ctx); return nil })
	g.Go(func() error { e.handshakes(ctx); return nil })
	_ = g.Wait() // none of them fails
	f.Now = time.Now()
	return e.facts, e.hap.Close()
}

// haproxy asks the running one what it is and what it has.
func (e *examiner) haproxy(ctx context.Context) {
	h := &e.facts.HAProxy
	p, err := e.hap.Process(ctx)
	if err != nil {
		h.Err = err
		return
	}
	h.Version, h.PID = p.Version, p.PID
	h.Chroot = chrootOf(p.PID)
	if h.Env, err = e.hap.Env(ctx); err != nil {
		h.Env, h.EnvErr = nil, err
	}
	inventory, err := e.hap.Inventory(ctx)
	h.ListErr = err
	for _, l := range inventory.Lists {
		h.Lists = append(h.Lists, check.List{Path: l.Path, Entries: len(l.Entries)})
	}
	h.Buffer, _ = e.hap.Buffer(ctx) // 0: not known
}

// settings reads them as the sidecar does.
func (e *examiner) settings(r *runner) {
	f := &e.facts
	var from *settings.Source
	switch kept, err := e.hap.LoadEnv(); {
	case f.HAProxy.Env != nil:
		from = &settings.Source{Name: settings.FromHAProxy, Values: f.HAProxy.Env}
	case f.Config != nil:
		from, f.FromFiles = &settings.Source{Name: settings.FromHAProxy, Values: f.Config.Environment()}, true
	case err == nil && kept != nil:
		from, f.FromCache = &settings.Source{Name: settings.FromCache, Values: kept}, true
	}
	f.Settings, f.Problems = r.load(from)
}

// backends asks HAProxy for those that belong to the sidecar.
func (e *examiner) backends(ctx context.Context) {
	h, s := &e.facts.HAProxy, e.facts.Settings
	servers, err := e.hap.Servers(ctx, s.AgentBackend)
	h.AgentsErr = err
	for _, a := range servers {
		h.Agents = append(h.Agents, check.Server(a))
	}
	if _, err := e.hap.Servers(ctx, s.RowsBackend); errors.Is(err, dataplane.ErrNoRows) {
		h.RowsErr = err
	}
}

// config reads the files that were named, those of the running HAProxy, or the usual one.
func (e *examiner) config() {
	f := &e.facts
	files, named := e.files, len(e.files) > 0
	if !named {
		files = filesOf(f.HAProxy.PID)
	}
	if len(files) == 0 {
		files = []string{"/etc/haproxy/haproxy.cfg"}
	}
	c := check.NewConfig(func(name string) (string, bool) { v, ok := f.HAProxy.Env[name]; return v, ok })
	for _, file := range expandFolders(files) {
		text, err := os.ReadFile(file)
		switch {
		case err == nil:
			c.Add(file, string(text))
		case named:
			f.ConfigErr = fmt.Errorf("read %s: %w: name files that this user may read with -f", file, errors.Unwrap(err))
			return
		default:
			return
		}
	}
	for _, file := range c.SPOEFiles() {
		text, err := os.ReadFile(file)
		if err != nil {
			c.Unread[file] = fmt.Errorf("read %s: %w", file, errors.Unwrap(err))
			continue
		}
		c.SPOE[file] = check.NewConfig(nil)
		c.SPOE[file].Add(file, string(text))
	}
	f.Config = c
}

// expandFolders replaces a folder by its *.cfg files in order, as HAProxy does.
func expandFolders(files []string) []string {
	var all []string
	for _, file := range files {
		if fi, err := os.Stat(file); err != nil || !fi.IsDir() {
			all = append(all, file)
			continue
		}
		in, _ := filepath.Glob(filepath.Join(file, "*.cfg")) // the pattern is good
		slices.Sort(in)
		all = append(all, in...)
	}
	return all
}

// filesOf returns the -f arguments of a process of this machine that is a HAProxy.
func filesOf(pid int) []string {
	if !isHAProxy(pid) {
		return nil
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	args := strings.Split(string(line), "\x00")
	var files []string
	for i := 1; i+1 < len(args) && args[i] != "--"; i++ {
		if args[i] == "-f" && filepath.IsAbs(args[i+1]) {
			files = append(files, args[i+1])
		}
	}
	return files
}

// isHAProxy tells a process of this machine from one of a container that has its own numbers.
func isHAProxy(pid int) bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.HasPrefix(string(name), "haproxy")
}

// chrootOf returns the root directory of HAProxy's process, where this user may look.
func chrootOf(pid int) string {
	if !isHAProxy(pid) {
		return ""
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil || root == "/" {
		return ""
	}
	return root
}

func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
