package issuer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// model is an ACME server inside the test: a http.RoundTripper that keeps the rules of RFC 8555 that matter here and
// counts what it was made to do. Time in it is package time's, so it works in a synctest bubble.
type model struct {
	tb testing.TB

	// Set before use.
	validate   func(token string) (keyAuthorization string) // what the CA would read from port 80
	intercept  func(r *request) *http.Response              // may answer instead; nil: go on
	after      func(r *request)                             // runs when a request was worked on, before it is answered
	skew       time.Duration                                // of the Date header
	lifetime   time.Duration
	retryAfter string // of orders in processing
	eab, nonce bool   // external binding required; every other nonce refused
	chain      func([]byte) []byte
	leaf       func(*x509.Certificate)
	host       string

	mu       sync.Mutex
	root     *x509.Certificate
	ca       *x509.Certificate
	key      crypto.Signer
	serial   int64
	accounts []string // JWK by number
	orders   []*modelOrder
	requests int
	inFlight int
	most     int // orders in flight at once
}

type modelOrder struct {
	account    int
	names      []string
	status     string
	tokens     []string // one per name
	answered   []time.Time
	verdicts   []string // "" pending, "valid", or a problem
	finalized  time.Time
	chain      []byte
	used       bool // downloaded or over
	deactivate bool
}

// request is one request as the model sees it.
type request struct {
	n       int    // 1, 2, …
	op      string // "directory", "nonce", "account", "order", "get", "authz", "challenge", "finalize", "certificate"
	order   *modelOrder
	payload map[string]any
}

// unreachable makes an interceptor fail the request.
var unreachable = &http.Response{}

const modelStep = 50 * time.Millisecond // how long validation and issuing take

func newModel(tb testing.TB) *model {
	m := &model{tb: tb, lifetime: 90 * 24 * time.Hour, retryAfter: "5", host: "ca.example"}
	rootKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Model root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(50, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	m.root = m.sign(t, t, rootKey.Public(), rootKey)
	t.SerialNumber, t.Subject.CommonName = big.NewInt(2), "Model CA"
	m.ca = m.sign(t, m.root, m.key.Public(), rootKey)
	return m
}

func (m *model) sign(t, parent *x509.Certificate, pub any, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		m.tb.Error(err)
		return t
	}
	c, _ := x509.ParseCertificate(der)
	return c
}

func (m *model) directory() string { return "https://" + m.host + "/directory" }

func (m *model) client() *http.Client { return &http.Client{Transport: m} }

func (m *model) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	var payload map[string]any
	var head struct {
		JWK   json.RawMessage
		KID   string
		Nonce string
	}
	if req.Body != nil {
		var jws struct{ Protected, Payload string }
		b, _ := io.ReadAll(req.Body)
		_ = json.Unmarshal(b, &jws)
		p, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
		_ = json.Unmarshal(p, &payload)
		h, _ := base64.RawURLEncoding.DecodeString(jws.Protected)
		_ = json.Unmarshal(h, &head)
	}
	m.mu.Lock()
	m.requests++
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	r := &request{n: m.requests, op: parts[0], payload: payload}
	number := func(i int) int {
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			m.tb.Errorf("odd URL %s", req.URL)
		}
		return n
	}
	if len(parts) > 1 && number(1) < len(m.orders) {
		r.order = m.orders[number(1)]
	}
	intercept := m.intercept
	m.mu.Unlock()
	if intercept != nil {
		if resp := intercept(r); resp == unreachable {
			return nil, errors.New("dial tcp: lookup ca.example: no such host")
		} else if resp != nil {
			return resp, req.Context().Err()
		}
	}
	m.mu.Lock()
	if m.nonce && req.Method == http.MethodPost && m.requests%2 == 0 {
		m.mu.Unlock()
		return m.finish(problem(400, "badNonce", "try another")), nil
	}
	var resp *http.Response
	switch r.op {
	case "directory":
		resp = reply(200, map[string]any{
			"newNonce": m.url("nonce"), "newAccount": m.url("account"), "newOrder": m.url("order"),
			"meta": map[string]any{"externalAccountRequired": m.eab},
		})
	case "nonce":
		resp = reply(200, nil)
	case "account":
		if resp = reply(200, map[string]any{"status": "valid"}); len(parts) == 1 {
			resp = m.account(head.JWK, payload)
		}
	case "order":
		r.order = m.place(head.KID, payload)
		resp = m.show(r.order, 201)
	case "get":
		if r.order == nil {
			resp = problem(404, "malformed", "no such order")
			break
		}
		resp = m.show(r.order, 200)
	case "authz":
		resp = m.authz(r.order, number(2), payload)
	case "challenge":
		resp = m.answer(r.order, number(2))
	case "finalize":
		resp = m.finalize(r.order, payload)
	case "certificate":
		resp = &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(r.order.chain))}
		r.order.done(m)
	}
	after := m.after
	m.mu.Unlock()
	if after != nil {
		after(r)
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return m.finish(resp), nil
}

// finish adds what every answer has.
func (m *model) finish(resp *http.Response) *http.Response {
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	resp.Header.Set("Replay-Nonce", fmt.Sprint(rand.Text()))
	resp.Header.Set("Date", time.Now().Add(m.skew).UTC().Format(http.TimeFormat))
	return resp
}

func (m *model) url(parts ...any) string {
	s := "https://" + m.host
	for _, p := range parts {
		s += fmt.Sprint("/", p)
	}
	return s
}

func reply(status int, v any) *http.Response {
	var b []byte
	if v != nil {
		b, _ = json.Marshal(v)
	}
	return answer(status, string(b))
}

// answer is any answer; header is key, value, ….
func answer(status int, body string, header ...string) *http.Response {
	r := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func problem(status int, kind, detail string, header ...string) *http.Response {
	b, _ := json.Marshal(map[string]any{"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status})
	return answer(status, string(b), header...)
}

func (m *model) account(jwk json.RawMessage, payload map[string]any) *http.Response {
	n := slices.Index(m.accounts, string(jwk))
	if n < 0 {
		if m.eab && payload["externalAccountBinding"] == nil {
			return problem(403, "externalAccountRequired", "bind it")
		}
		n = len(m.accounts)
		m.accounts = append(m.accounts, string(jwk))
	}
	resp := reply(201, map[string]any{"status": "valid"})
	resp.Header.Set("Location", m.url("account", n))
	return resp
}

func (m *model) place(kid string, payload map[string]any) *modelOrder {
	account, _ := strconv.Atoi(kid[strings.LastIndex(kid, "/")+1:])
	o := &modelOrder{account: account, status: "pending"}
	for _, id := range payload["identifiers"].([]any) {
		o.names = append(o.names, id.(map[string]any)["value"].(string))
		o.tokens = append(o.tokens, rand.Text())
	}
	o.answered = make([]time.Time, len(o.names))
	o.verdicts = make([]string, len(o.names))
	m.orders = append(m.orders, o)
	m.inFlight++
	m.most = max(m.most, m.inFlight)
	return o
}

func (o *modelOrder) done(m *model) {
	if !o.used {
		o.used = true
		m.inFlight--
	}
}

// move lets time pass over an order.
func (m *model) move(o *modelOrder) {
	valid := 0
	for i := range o.names {
		if o.verdicts[i] == "" && !o.answered[i].IsZero() && time.Since(o.answered[i]) >= modelStep {
			o.verdicts[i] = "valid"
			if got := m.validate(o.tokens[i]); !strings.HasPrefix(got, o.tokens[i]+".") {
				o.verdicts[i] = "the answer was wrong: " + got
			}
		}
		if o.verdicts[i] == "valid" {
			valid++
		} else if o.verdicts[i] != "" && o.status == "pending" {
			o.status = "invalid"
			o.done(m)
		}
	}
	if o.deactivate && o.chain == nil {
		o.status = "invalid"
		o.done(m)
	}
	if o.status == "pending" && valid == len(o.names) {
		o.status = "ready"
	}
	if o.status == "processing" && time.Since(o.finalized) >= modelStep {
		o.status = "valid"
	}
}

func (m *model) index(o *modelOrder) int { return slices.Index(m.orders, o) }

func (m *model) show(o *modelOrder, status int) *http.Response {
	m.move(o)
	n := m.index(o)
	var ids []any
	var authz []string
	for i, name := range o.names {
		ids = append(ids, map[string]string{"type": "dns", "value": name})
		authz = append(authz, m.url("authz", n, i))
	}
	v := map[string]any{"status": o.status, "identifiers": ids, "authorizations": authz, "finalize": m.url("finalize", n)}
	if o.status == "valid" {
		v["certificate"] = m.url("certificate", n)
	}
	resp := reply(status, v)
	resp.Header.Set("Location", m.url("get", n))
	if o.status == "processing" && m.retryAfter != "" {
		resp.Header.Set("Retry-After", m.retryAfter)
	}
	return resp
}

func (m *model) authz(o *modelOrder, i int, payload map[string]any) *http.Response {
	if payload["status"] == "deactivated" {
		o.deactivate = true
	}
	m.move(o)
	challenge := map[string]any{"type": "http-01", "status": "pending", "token": o.tokens[i], "url": m.url("challenge", m.index(o), i)}
	status := o.verdicts[i]
	switch {
	case status == "" && !o.answered[i].IsZero():
		status, challenge["status"] = "pending", "processing"
	case status == "":
		status = "pending"
	case status == "valid":
		challenge["status"] = "valid"
	default:
		challenge["status"] = "invalid"
		challenge["error"] = map[string]any{"type": "urn:ietf:params:acme:error:unauthorized", "detail": status, "status": 403}
		status = "invalid"
	}
	return reply(200, map[string]any{
		"status": status, "identifier": map[string]string{"type": "dns", "value": o.names[i]},
		"challenges": []any{map[string]any{"type": "dns-01", "status": "pending", "token": "x", "url": m.url("dns", 1, 1)}, challenge},
	})
}

func (m *model) answer(o *modelOrder, i int) *http.Response {
	if !o.answered[i].IsZero() {
		return problem(400, "malformed", "challenge is not pending")
	}
	o.answered[i] = time.Now()
	return reply(200, map[string]any{"type": "http-01", "status": "processing", "token": o.tokens[i], "url": m.url("challenge", m.index(o), i)})
}

func (m *model) finalize(o *modelOrder, payload map[string]any) *http.Response {
	m.move(o)
	if o.status != "ready" {
		return problem(403, "orderNotReady", "it is "+o.status)
	}
	der, _ := base64.RawURLEncoding.DecodeString(payload["csr"].(string))
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || !slices.Equal(slices.Sorted(slices.Values(csr.DNSNames)), slices.Sorted(slices.Values(o.names))) {
		return problem(400, "badCSR", "names")
	}
	m.serial++
	t := &x509.Certificate{
		SerialNumber: big.NewInt(0x1000 + m.serial), NotBefore: time.Now().Add(m.skew - time.Hour), DNSNames: o.names,
		NotAfter: time.Now().Add(m.skew - time.Hour + m.lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if m.leaf != nil {
		m.leaf(t)
	}
	o.chain = chainPEM(m.sign(t, m.ca, csr.PublicKey, m.key), m.ca)
	if m.chain != nil {
		o.chain = m.chain(o.chain)
	}
	o.status, o.finalized = "processing", time.Now()
	return m.show(o, 200)
}

func chainPEM(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// What total counts.
const (
	requests = iota
	accounts
	orders
	most // orders in flight at once
)

func (m *model) total(of int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return [...]int{m.requests, len(m.accounts), len(m.orders), m.most}[of]
}

// issued counts the certificates that the model signed, by name.
func (m *model) issued() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := map[string]int{}
	for _, o := range m.orders {
		if o.chain != nil {
			n[o.names[0]]++
		}
	}
	return n
}
