package simulation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
)

// way is a process's way to Consul: slow, lossy, and working on for requests of processes that are stopped or dead. It
// implements http.RoundTripper, with no network.
type way struct{ p *process }

// ask is one request as Consul gets it.
type ask struct {
	method string
	path   string
	params map[string]string
	body   []byte
	ops    api.TxnOps // of a transaction
	ctx    context.Context
}

// write reports whether it may change anything that is shared.
func (a *ask) write() bool { return a.method != http.MethodGet && !strings.HasPrefix(a.path, "agent/") }

// about is what the request is about, with nothing in it that is drawn at random.
func (a *ask) about() string {
	if a.ops == nil {
		return a.method + " " + a.path
	}
	keys := make([]string, len(a.ops))
	for i, op := range a.ops {
		keys[i] = string(op.KV.Verb) + op.KV.Key
	}
	slices.Sort(keys)
	return "transaction " + strings.Join(keys, " ")
}

// RoundTrip sends a request, which may arrive although nobody waits for the answer any more.
func (v way) RoundTrip(req *http.Request) (*http.Response, error) {
	p, ctx := v.p, req.Context()
	if err := p.gate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := &ask{method: req.Method, path: strings.TrimPrefix(req.URL.Path, "/v1/"), params: map[string]string{}, ctx: ctx}
	for name, values := range req.URL.Query() {
		a.params[name] = values[0]
	}
	if req.Body != nil {
		var err error
		if a.body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
	}
	if a.path == "txn" {
		if err := json.Unmarshal(a.body, &a.ops); err != nil {
			return nil, err
		}
	}
	p.w.steps.Add(1)
	answers := make(chan answer, 1)
	go v.travel(a, answers)
	var got answer
	select {
	case got = <-answers:
	case <-ctx.Done():
		got.err = ctx.Err()
	case <-p.died:
	}
	if dead := p.gate(); dead != nil {
		return nil, dead
	}
	if got.err != nil {
		return nil, got.err
	}
	return got.response(req), nil
}

// answer is what comes back: an error when it does not.
type answer struct {
	status int
	index  uint64
	body   any
	err    error
}

func (a answer) response(req *http.Request) *http.Response {
	body, err := json.Marshal(a.body)
	if text, ok := a.body.(string); ok {
		body = []byte(text)
	}
	if err != nil {
		panic(err)
	}
	h := http.Header{"X-Consul-Index": {strconv.FormatUint(a.index, 10)}, "X-Consul-Knownleader": {"true"}, "X-Consul-Lastcontact": {"0"}}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req}
}

// travel takes a request to Consul and its answer back.
func (v way) travel(a *ask, answers chan<- answer) {
	p, w := v.p, v.p.w
	n := w.now()
	about := p.id + " " + a.about()
	there := w.dice.span(5*time.Millisecond, about, n)
	// Where nothing dies no session does either.
	well := w.chaos.nothingDies && strings.HasPrefix(a.path, "session/")
	switch {
	case well:
	case a.write() && w.faulty(commitRefused, about+" refused", n):
		pause(there)
		answers <- answer{err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}}
		return
	case a.write() && w.faulty(commitLost, about+" lost", n):
		w.trace.add("%s: lost", about)
		return
	case a.write() && w.faulty(commitSlow, about+" slow", n):
		there += w.dice.span(12*time.Second, about+" way", n)
	case !a.write() && w.faulty(readSlow, about+" slow", n):
		there += w.dice.span(4*time.Second, about+" way", n)
	case !a.write() && w.faulty(readFails, about+" fails", n):
		pause(there)
		answers <- answer{status: 500, body: "injected"}
		return
	}
	pause(there)
	if !p.arrives(a, about, n) {
		return
	}
	got := p.served(a)
	back := w.dice.span(5*time.Millisecond, about+" back", w.now())
	switch {
	case well:
	case a.write() && w.faulty(commitUnanswered, about+" unanswered", n):
		w.trace.add("%s: the answer is lost", about)
		return
	case a.params["index"] != "" && w.faulty(watchSlow, about+" slow", w.now()):
		back += w.dice.span(8*time.Second, about+" way", w.now())
	}
	pause(back)
	if p.connected(a.ctx) != nil {
		return
	}
	if a.write() {
		p.hit(about, n)
	}
	answers <- got
}

// arrives reports whether a request reaches Consul: late when the process has died meanwhile, or never.
func (p *process) arrives(a *ask, about string, n int) bool {
	w := p.w
	w.mu.Lock()
	dead := p.dead
	w.mu.Unlock()
	if dead {
		if w.dice.chance(400, about+" dies with it", n) {
			return false
		}
		pause(w.dice.span(40*time.Second, about+" outlives it", n))
		return true
	}
	return p.connected(a.ctx) == nil
}

// connected returns when packets pass between the process and Consul, or nobody waits for them any more.
func (p *process) connected(ctx context.Context) error {
	for {
		p.w.mu.Lock()
		cut, dead := p.uncut, p.dead
		p.w.mu.Unlock()
		if cut == nil || dead {
			return nil
		}
		select {
		case <-cut:
		case <-p.died:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// served is what Consul does with a request.
func (p *process) served(a *ask) answer {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.server.election) {
		return answer{status: 500, body: "No cluster leader"}
	}
	if a.method == http.MethodGet && strings.HasPrefix(a.path, "kv/") {
		return w.server.blocking(p, a)
	}
	return w.server.do(p, a)
}

// blocking answers a read, once there is something newer than the index that it names, or its time is over.
func (s *server) blocking(p *process, a *ask) answer {
	q := query{key: strings.TrimPrefix(a.path, "kv/")}
	_, q.recurse = a.params["recurse"]
	_, q.names = a.params["keys"]
	q.separator = a.params["separator"]
	after, _ := strconv.ParseUint(a.params["index"], 10, 64)
	var until <-chan time.Time
	for {
		pairs, index := s.read(q)
		got := q.answer(pairs, index)
		if after == 0 || index > after {
			return got
		}
		if until == nil {
			wait, err := time.ParseDuration(a.params["wait"])
			if err != nil {
				return answer{status: 400, body: "wait: " + err.Error()}
			}
			until = time.After(wait + s.w.dice.span(wait/16, p.id+" waits "+a.path, s.w.now()))
		}
		r := s.wait(q, len(pairs) == 0)
		s.w.mu.Unlock()
		var over bool
		select {
		case <-r.changed:
		case <-until:
			over = true
		case <-a.ctx.Done():
			over = true
		case <-p.died:
			over = true
		}
		s.w.mu.Lock()
		delete(s.waiting, r)
		if over || r.abandoned {
			return got
		}
	}
}

func (q query) answer(pairs api.KVPairs, index uint64) answer {
	switch {
	case len(pairs) == 0:
		return answer{status: 404, index: index, body: ""}
	case q.names:
		return answer{status: 200, index: index, body: q.cut(pairs)}
	}
	return answer{status: 200, index: index, body: pairs}
}

// do answers what does not block.
func (s *server) do(p *process, a *ask) answer {
	kind, rest, _ := strings.Cut(a.path, "/")
	verb, id, _ := strings.Cut(rest, "/")
	switch {
	case kind == "agent":
		return answer{status: 200, body: ""}
	case kind == "txn":
		results, refused := s.transact(p, a.ops)
		if refused != nil {
			return answer{status: 409, body: api.TxnResponse{Errors: refused}}
		}
		return answer{status: 200, body: api.TxnResponse{Results: results}}
	case kind == "session" && verb == "create":
		var e api.SessionEntry
		if err := json.Unmarshal(a.body, &struct{ Behavior *string }{&e.Behavior}); err != nil {
			return answer{status: 400, body: err.Error()}
		}
		return answer{status: 200, body: map[string]string{"ID": s.create(p, e.Behavior)}}
	case kind == "session" && verb == "renew":
		if !s.renew(id) {
			return answer{status: 404, body: ""}
		}
		return answer{status: 200, body: []api.SessionEntry{{ID: id}}}
	case kind == "session" && verb == "destroy":
		s.destroy(id)
		return answer{status: 200, body: true}
	case kind == "kv" && a.method == http.MethodPut:
		return s.put(p, a, rest)
	case kind == "kv" && a.method == http.MethodDelete:
		s.index++
		_, tree := a.params["recurse"]
		for _, pair := range s.below(query{key: rest, recurse: tree}) {
			s.delete(p, pair.Key)
		}
		return answer{status: 200, body: true}
	}
	return answer{status: 404, body: fmt.Sprintf("%s %s", a.method, a.path)}
}

// below are the pairs that a query finds.
func (s *server) below(q query) api.KVPairs {
	pairs, _ := s.read(q)
	return pairs
}

func (s *server) put(p *process, a *ask, key string) answer {
	if id, ok := a.params["acquire"]; ok {
		done, err := s.acquire(p, key, a.body, id)
		if err != nil {
			return answer{status: 500, body: err.Error()}
		}
		return answer{status: 200, body: done}
	}
	s.index++
	s.set(p, key, a.body, 0, s.holder(key))
	return answer{status: 200, body: true}
}
