package status

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// Limits of one agent check.
const (
	agentConnections = 1024
	agentQuestion    = 128                    // bytes
	agentPatience    = 250 * time.Millisecond // for the question: HAProxy sends it with the connection
	agentDeadline    = 2 * time.Second
	agentFresh       = time.Second // how old the view behind an answer may be
)

// AgentCheck answers HAProxy's agent checks. A server with `agent-send NAME|` is told the state of
// the certificate NAME. One with `agent-send |` gets a summary, which never marks it down; so does
// one that sends nothing, a moment later.
type AgentCheck struct {
	// View returns the current view. It is asked at most once a second.
	View func() View

	mu   sync.Mutex
	view View
	at   time.Time
}

// Serve answers on ln until ctx ends, then closes it.
func (a *AgentCheck) Serve(ctx context.Context, ln net.Listener) error {
	return accept(ctx, ln, agentConnections, a.handle)
}

func (a *AgentCheck) handle(_ context.Context, conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(agentDeadline))
	_, _ = conn.Write([]byte(a.reply(question(conn))))
}

// question reads up to the terminator. The command line of HAProxy can't send a line end, hence '|'.
func question(conn net.Conn) string {
	_ = conn.SetReadDeadline(time.Now().Add(agentPatience))
	buf := make([]byte, 0, agentQuestion)
	for len(buf) < cap(buf) {
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if i := bytes.IndexAny(buf, "|\r\n\x00"); i >= 0 {
			return string(buf[:i])
		}
		if err != nil {
			break
		}
	}
	return string(buf)
}

// neutral is an answer that changes nothing: it has no state word.
const neutral = "#the store is being read\n"

func (a *AgentCheck) reply(name string) string {
	v := a.current()
	if v.Loading {
		return neutral
	}
	switch name {
	case "":
		return summary(v).String()
	case OthersRow:
		_, rest := layout(v)
		return restOf(rest, v.Time).String()
	}
	c, ok := v.Certificate(name)
	if !ok {
		return answer{wordsDown, 0, "unknown"}.String()
	}
	return rowOf(c, v.Time).String()
}

func (a *AgentCheck) current() View {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at.IsZero() || time.Since(a.at) >= agentFresh {
		a.view, a.at = a.View(), time.Now()
	}
	return a.view
}
