package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
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
	download   func(*modelOrder) []byte // what arrives of a chain
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

	post bool
	path []int // after the operation
	head struct {
		JWK json.RawMessage
		KID string
	}
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

// RoundTrip implements http.RoundTripper.
func (m *model) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	r := m.read(req)
	intercept, after := m.intercept, m.after
	m.mu.Unlock()
	if intercept != nil {
		if resp := intercept(r); resp == unreachable {
			return nil, errors.New("dial tcp: lookup ca.example: no such host")
		} else if resp != nil {
			return resp, req.Context().Err()
		}
	}
	m.mu.Lock()
	resp := m.serve(r)
	m.mu.Unlock()
	if after != nil {
		after(r)
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	resp.Header.Set("Replay-Nonce", rand.Text())
	resp.Header.Set("Date", time.Now().Add(m.skew).UTC().Format(http.TimeFormat))
	return resp, nil
}

// read takes a request apart: /operation/order/number.
func (m *model) read(req *http.Request) *request {
	m.requests++
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	r := &request{n: m.requests, op: parts[0], post: req.Method == http.MethodPost}
	for _, p := range parts[1:] {
		n, err := strconv.Atoi(p)
		if err != nil {
			m.tb.Errorf("odd URL %s", req.URL)
		}
		r.path = append(r.path, n)
	}
	if len(r.path) > 0 && r.path[0] < len(m.orders) {
		r.order = m.orders[r.path[0]]
	}
	if req.Body != nil {
		var jws struct{ Protected, Payload string }
		b, _ := io.ReadAll(req.Body)
		_ = json.Unmarshal(b, &jws)
		p, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
		_ = json.Unmarshal(p, &r.payload)
		h, _ := base64.RawURLEncoding.DecodeString(jws.Protected)
		_ = json.Unmarshal(h, &r.head)
	}
	return r
}

// serve does what a request asks for.
func (m *model) serve(r *request) *http.Response {
	if m.nonce && r.post && m.requests%2 == 0 {
		return problem(400, "badNonce", "try another")
	}
	switch r.op {
	case "directory":
		return reply(200, map[string]any{
			"newNonce": m.url("nonce"), "newAccount": m.url("account"), "newOrder": m.url("order"),
			"meta": map[string]any{"externalAccountRequired": m.eab},
		})
	case "nonce":
		return reply(200, nil)
	case "account":
		if len(r.path) > 0 {
			return reply(200, map[string]any{"status": "valid"})
		}
		return m.account(r.head.JWK, r.payload)
	case "order":
		r.order = m.place(r.head.KID, r.payload)
		return m.show(r.order, 201)
	}
	if r.order == nil {
		return problem(404, "malformed", "no such order")
	}
	switch r.op {
	case "get":
		return m.show(r.order, 200)
	case "authz":
		return m.authz(r.order, r.path[1], r.payload)
	case "challenge":
		return m.answer(r.order, r.path[1])
	case "finalize":
		return m.finalize(r.order, r.payload)
	case "certificate":
		r.order.done(m)
		if m.download != nil {
			return answer(200, string(m.download(r.order)))
		}
		return answer(200, string(r.order.chain))
	}
	return problem(404, "malformed", "no such resource")
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
