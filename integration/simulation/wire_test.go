package simulation

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// line is a process's way to the CA. It implements http.RoundTripper, with no network.
type line struct{ p *process }

// request is one as the CA gets it.
type request struct {
	op      string // "directory", "nonce", "account", "order", "get", "authz", "challenge", "finalize", "certificate"
	number  int    // of the order
	part    int    // of its names
	jwk     string
	payload map[string]any
	by      string
}

// ofOrder reports whether the request is about an order that was placed before.
func (r *request) ofOrder() bool {
	return slices.Contains([]string{"get", "authz", "challenge", "finalize", "certificate"}, r.op)
}

func (r *request) String() string {
	if r.op == "order" {
		return fmt.Sprint("order for ", identifiers(r.payload))
	}
	return fmt.Sprintf("%s %d %d", r.op, r.number, r.part)
}

func parse(req *http.Request) (*request, error) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	r := &request{op: parts[0]}
	var err1, err2 error
	if len(parts) > 1 {
		r.number, err1 = strconv.Atoi(parts[1])
	}
	if len(parts) > 2 {
		r.part, err2 = strconv.Atoi(parts[2])
	}
	if err := errors.Join(err1, err2); err != nil || req.Body == nil {
		return r, err
	}
	var jws struct{ Protected, Payload string }
	var head struct{ JWK json.RawMessage }
	err := json.NewDecoder(req.Body).Decode(&jws)
	h, err1 := base64.RawURLEncoding.DecodeString(jws.Protected)
	p, err2 := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err := errors.Join(err, err1, err2, json.Unmarshal(h, &head)); err != nil {
		return r, err
	}
	r.jwk = string(head.JWK)
	if len(p) > 0 {
		err = json.Unmarshal(p, &r.payload)
	}
	return r, err
}

// RoundTrip sends a request, which may arrive although nobody waits for the answer any more.
func (l line) RoundTrip(req *http.Request) (*http.Response, error) {
	p := l.p
	if err := p.gate(); err != nil {
		return nil, err
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	r, err := parse(req)
	if err != nil {
		p.w.problem("%s asked what is not ACME: %v", p.id, err)
		return nil, err
	}
	r.by = p.id
	p.w.steps.Add(1)
	p.w.seeRequest(p, r)
	if r.op == "nonce" { // takes no time, or it would matter which of several requests finds one in the client's stock
		return finish(reply(200, nil)), nil
	}
	result := make(chan *http.Response, 1)
	go l.travel(r, result)
	var resp *http.Response
	select {
	case resp = <-result:
	case <-req.Context().Done():
		err = req.Context().Err()
	case <-p.died:
	}
	if dead := p.gate(); dead != nil {
		return nil, dead
	}
	if resp == nil && err == nil {
		err = errors.New("connection reset by peer")
	}
	return resp, err
}

// travel brings a request to the CA and its answer back: nil when there is none.
func (l line) travel(r *request, result chan<- *http.Response) {
	w, about := l.p.w, r.String()
	n := w.now()
	about = l.p.id + " " + about
	way := w.dice.span(80*time.Millisecond, about, n)
	w.mu.Lock()
	down := w.ca.down
	w.mu.Unlock()
	switch {
	case down, w.faulty(caLost, about+" lost", n):
		pause(way)
		result <- nil
		return
	case w.faulty(caLate, about+" late", n):
		way += w.dice.span(70*time.Second, about+" way", n)
	case w.faulty(caFails, about+" fails", n):
		pause(way)
		result <- finish(problem(503, "serverInternal", "try later"))
		return
	}
	pause(way)
	w.mu.Lock()
	if l.p.dead && w.dice.chance(400, about+" dies with it", n) {
		w.mu.Unlock()
		return
	}
	resp := w.ca.handle(r)
	if w.faulty(caTwice, about+" twice", n) { // by something in between
		w.trace.add("CA: %s: comes twice", about)
		resp = w.ca.handle(r)
	}
	w.mu.Unlock()
	if w.trace != nil {
		w.trace.add("CA: %s: %d", about, resp.StatusCode)
	}
	way = w.dice.span(80*time.Millisecond, about+" back", n)
	if w.faulty(caUnanswered, about+" unanswered", n) {
		w.trace.add("CA: %s: the answer is lost", about)
		resp = nil
		switch w.dice.roll(3, about+" how", n) {
		case 0:
			resp = finish(problem(500, "serverInternal", "done, but something went wrong"))
		case 1:
			way += 40 * time.Second
		}
	}
	pause(way)
	l.p.hit(about, n)
	result <- resp
}

// handle answers a request. w.mu is held.
func (ca *authority) handle(r *request) *http.Response {
	var o *order
	switch r.op {
	case "directory":
		return finish(reply(200, map[string]any{"newNonce": "https://ca.example/nonce",
			"newAccount": "https://ca.example/account", "newOrder": "https://ca.example/order"}))
	case "account":
		return finish(ca.account(r))
	case "order":
		o = ca.place(r.by, identifiers(r.payload))
		return finish(ca.show(o, 201))
	}
	if r.number >= len(ca.orders) {
		return finish(problem(404, "malformed", "unknown"))
	}
	o = ca.orders[r.number]
	ca.move(o)
	o.asked++
	if o.status == "pending" && ca.w.faulty(forgets, "forgets", o.number*1000+o.asked) {
		o.forgot = true
	}
	if o.forgot {
		return finish(problem(404, "malformed", "no such order"))
	}
	return finish(ca.about(o, r))
}

func (ca *authority) about(o *order, r *request) *http.Response {
	switch r.op {
	case "get":
		return ca.show(o, 200)
	case "authz":
		if r.payload["status"] == "deactivated" && o.cert == nil {
			o.status = "invalid"
		}
		return ca.authorization(o, r.part)
	case "challenge":
		if r.payload == nil { // POST-as-GET
			return reply(200, ca.challenge(o, r.part))
		}
		if o.answered[r.part] || o.status != "pending" {
			return problem(400, "malformed", "the challenge is not pending")
		}
		ca.told(o, r.part)
		return reply(200, ca.challenge(o, r.part))
	case "finalize":
		if o.status != "ready" {
			return problem(403, "orderNotReady", "it is "+o.status)
		}
		der, _ := base64.RawURLEncoding.DecodeString(r.payload["csr"].(string))
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || !slices.Equal(slices.Sorted(slices.Values(csr.DNSNames)), slices.Sorted(slices.Values(o.domains))) {
			return problem(400, "badCSR", "names")
		}
		ca.finalize(o, csr)
		return ca.show(o, 200)
	case "certificate":
		if o.status == "valid" {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(o.cert.chain))}
		}
	}
	return problem(404, "malformed", "unknown")
}

func (ca *authority) account(r *request) *http.Response {
	n := slices.Index(ca.accounts, r.jwk)
	if n < 0 {
		n = len(ca.accounts)
		ca.accounts = append(ca.accounts, r.jwk)
		ca.w.seeAccount(r.by, n)
	}
	resp := reply(201, map[string]any{"status": "valid"})
	resp.Header.Set("Location", fmt.Sprintf("https://ca.example/account/%d", n))
	return resp
}

func identifiers(payload map[string]any) []string {
	var names []string
	ids, _ := payload["identifiers"].([]any)
	for _, id := range ids {
		m, _ := id.(map[string]any)
		names = append(names, fmt.Sprint(m["value"]))
	}
	return names
}

func (ca *authority) show(o *order, status int) *http.Response {
	ca.move(o)
	var ids, authz []any
	for i, d := range o.domains {
		ids = append(ids, map[string]string{"type": "dns", "value": d})
		authz = append(authz, fmt.Sprintf("https://ca.example/authz/%d/%d", o.number, i))
	}
	v := map[string]any{"status": o.status, "identifiers": ids, "authorizations": authz, "expires": o.expires.Format(time.RFC3339),
		"finalize": fmt.Sprintf("https://ca.example/finalize/%d", o.number)}
	if o.status == "valid" {
		v["certificate"] = fmt.Sprintf("https://ca.example/certificate/%d", o.number)
	}
	resp := reply(status, v)
	resp.Header.Set("Location", o.url())
	if o.status == "processing" {
		resp.Header.Set("Retry-After", "2")
	}
	return resp
}

func (ca *authority) challenge(o *order, i int) map[string]any {
	c := map[string]any{"type": "http-01", "status": "pending", "token": o.tokens[i],
		"url": fmt.Sprintf("https://ca.example/challenge/%d/%d", o.number, i)}
	switch v := o.verdicts[i]; {
	case v == "valid":
		c["status"] = "valid"
	case v != "":
		c["status"] = "invalid"
		c["error"] = map[string]any{"type": "urn:ietf:params:acme:error:unauthorized", "detail": v, "status": 403}
	case o.answered[i]:
		c["status"] = "processing"
	}
	return c
}

func (ca *authority) authorization(o *order, i int) *http.Response {
	status := "pending"
	switch v := o.verdicts[i]; {
	case v == "valid":
		status = v
	case v != "":
		status = "invalid"
	}
	return reply(200, map[string]any{"status": status, "identifier": map[string]string{"type": "dns", "value": o.domains[i]},
		"challenges": []any{ca.challenge(o, i)}})
}

func finish(resp *http.Response) *http.Response {
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	resp.Header.Set("Replay-Nonce", "bm9uY2U")
	resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return resp
}

func reply(status int, v any) *http.Response {
	var b []byte
	if v != nil {
		b, _ = json.Marshal(v)
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(b))}
}

func problem(status int, kind, detail string) *http.Response {
	return reply(status, map[string]any{"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status})
}
