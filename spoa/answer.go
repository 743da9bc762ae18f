package spoa

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/negasus/haproxy-spoe-go/action"
	"github.com/negasus/haproxy-spoe-go/request"
)

// challengePrefix is where RFC 8555 section 8.3 puts the answers.
const challengePrefix = "/.well-known/acme-challenge/"

// The variables of an answer. Some versions of HAProxy stall when an answer
// sets none, so there is always exactly one. Only strings are sent: the
// library panics when it encodes a negative number.
const (
	varKeyAuth = "keyauth" // the key authorization
	varMiss    = "miss"    // "unknown", when there is none
)

// answer is called by the library in a goroutine for each question, so a
// panic here would end the process.
func (a *Agent) answer(ctx context.Context, req *request.Request) {
	defer func() {
		if p := recover(); p != nil {
			a.panicked(p)
			req.Actions.Reset()
			req.Actions.SetVar(action.ScopeTransaction, varMiss, "unknown")
		}
	}()
	path, host := question(req)
	token, ok := strings.CutPrefix(path, challengePrefix)
	if ok && base64URL(token) {
		if keyAuth, ok := a.lookup(ctx, token); ok {
			a.known.Add(1)
			a.log.LogAttrs(ctx, slog.LevelDebug, "answered challenge", slog.String("token", token), slog.String("domain", host))
			req.Actions.SetVar(action.ScopeTransaction, varKeyAuth, keyAuth)
			return
		}
	}
	a.unknown.Add(1)
	req.Actions.SetVar(action.ScopeTransaction, varMiss, "unknown")
}

// question returns the path and host of the first message that has a path.
// HAProxy neither decodes nor normalises it, and leaves the query out.
func question(req *request.Request) (path, host string) {
	for _, m := range *req.Messages {
		p, _ := m.KV.Get("path")
		if path, ok := p.(string); ok {
			h, _ := m.KV.Get("host")
			host, _ := h.(string)
			return path, host
		}
	}
	return "", ""
}

// lookup asks the table, and the store for a token that the table lacks.
func (a *Agent) lookup(ctx context.Context, token string) (keyAuth string, ok bool) {
	if keyAuth, ok = a.cfg.Table.Lookup(token); ok || a.misses == nil {
		return keyAuth, ok
	}
	if keyAuth, ok = a.misses.read(ctx, token); ok {
		return keyAuth, true
	}
	// The read may have taken a while, and the token may have come meanwhile.
	return a.cfg.Table.Lookup(token)
}

// panicked counts a contained panic and reports it with where it was.
func (a *Agent) panicked(p any) {
	a.panics.Add(1)
	if a.quiet.allow() {
		a.log.Error("contained panic; please report it", "err", p, "stack", string(debug.Stack()))
	}
}
