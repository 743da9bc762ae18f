package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/haproxytech/client-native/v5/runtime"
)

// Process is the HAProxy process that answers.
type Process struct {
	PID     int
	Version string // "3.2.26-1"
	Node    string
	Started time.Time // exact to a second or two
}

// same tells processes apart by their start, too: in a container every HAProxy may have the same PID.
func (p Process) same(q Process) bool {
	d := p.Started.Sub(q.Started)
	return p.PID == q.PID && d > -3*time.Second && d < 3*time.Second
}

// AtLeast reports whether the version is major.minor or newer.
func (p Process) AtLeast(major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(p.Version, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// Process asks HAProxy who it is.
func (h *HAProxy) Process(ctx context.Context) (Process, error) {
	answer, err := h.raw(ctx, "show info")
	if err != nil {
		return Process{}, err
	}
	return parseInfo(answer)
}

func parseInfo(answer []byte) (Process, error) {
	var p Process
	var uptime int
	var err error
	for l := range strings.Lines(string(answer)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), ": ")
		switch k {
		case "Pid":
			p.PID, err = strconv.Atoi(v)
		case "Uptime_sec":
			uptime, err = strconv.Atoi(v)
		case "Version":
			p.Version = line(v)
		case "node":
			p.Node = line(v)
		}
		if err != nil {
			return Process{}, fmt.Errorf("%w: `show info` has a %s that is no number; is the socket HAProxy's?", ErrDown, k)
		}
	}
	if p.PID == 0 || p.Version == "" {
		return Process{}, fmt.Errorf("%w: `show info` names no process; is the socket HAProxy's stats socket?", ErrDown)
	}
	p.Started = time.Now().Add(-time.Duration(uptime) * time.Second).Truncate(time.Second)
	return p, nil
}

// raw runs a command, or several separated by semicolons, and returns what HAProxy answers.
func (h *HAProxy) raw(ctx context.Context, command string) ([]byte, error) {
	return h.wire.do(ctx, h.timing.command, func(c *runtime.SingleRuntime) error {
		_, err := c.ExecuteRaw(command)
		return err
	})
}

// buffer is tune.bufsize of a process.
type buffer struct {
	of   Process
	size int
}

var bufferPool = regexp.MustCompile(`Pool buffer \(([0-9]+) bytes\)`)

// bufsize returns tune.bufsize of the running process: the size of its buffers. HAProxy 2.2 dies some time
// after a command that is larger, so it must be known and never be tried.
func (h *HAProxy) bufsize(ctx context.Context, p Process) (int, error) {
	if h.buffer.size > 0 && h.buffer.of.same(p) {
		return h.buffer.size, nil
	}
	answer, err := h.raw(ctx, "show pools")
	if err != nil {
		return 0, fmt.Errorf("read size of buffers: %w", err)
	}
	n := 16384
	if m := bufferPool.FindSubmatch(answer); m != nil {
		if v, err := strconv.Atoi(string(m[1])); err == nil {
			n = v
		}
	}
	h.buffer = buffer{of: p, size: n}
	return n, nil
}

// Env returns HAProxy's whole environment, `setenv` lines of haproxy.cfg included. It may hold secrets.
func (h *HAProxy) Env(ctx context.Context) (map[string]string, error) {
	answer, err := h.raw(ctx, "show env")
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	env := map[string]string{}
	for l := range bytes.Lines(answer) {
		k, v, ok := strings.Cut(strings.TrimRight(string(l), "\r\n"), "=")
		if ok && k != "" {
			env[k] = v
		}
	}
	if len(env) == 0 {
		return nil, fmt.Errorf("read settings: HAProxy's environment is empty; is the socket of level operator or admin?")
	}
	return env, nil
}
