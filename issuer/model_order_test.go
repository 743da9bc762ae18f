package issuer

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

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
