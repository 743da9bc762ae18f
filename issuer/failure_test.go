package issuer

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// bad is a CA that does one thing wrong, and what the user reads of it.
type bad struct {
	name   string
	op     string // the operation that is answered wrongly
	answer func() *http.Response
	rig    func(b *bench)
	domain string
	want   string        // Attempt.Error
	pause  time.Duration // least pause; at most a tenth and a minute more
	orders int           // records of orders that are kept
}

var badAnswers = []bad{
	{name: "certificates limit", op: "order", pause: time.Hour, answer: func() *http.Response {
		return problem(429, "rateLimited", "too many certificates (5) already issued for this exact set of identifiers", "Retry-After", "3600")
	}, want: "place order: rateLimited: too many certificates (5) already issued for this exact set of identifiers"},
	{name: "limit until a date", op: "order", pause: 5 * time.Hour, answer: func() *http.Response {
		return problem(429, "rateLimited", "too many certificates for it", "Retry-After", time.Now().Add(5*time.Hour).UTC().Format(http.TimeFormat))
	}, want: "place order: rateLimited: too many certificates for it"},
	{name: "paused", op: "order", pause: time.Hour, answer: func() *http.Response {
		return problem(429, "rateLimited", "Your account is temporarily prevented from requesting certificates for shop.example.com. Please visit: https://portal.example/unpause?jwt=abc")
	}, want: "place order: rateLimited: Your account is temporarily prevented from requesting certificates for shop.example.com. Please visit: https://portal.example/unpause?jwt=abc"},
	{name: "HTML", op: "order", pause: time.Minute, answer: func() *http.Response {
		return answer(200, "<html><body>Welcome</body></html>")
	}, want: `place order: Post "https://ca.example/order": HTTP status 200, an HTML page instead of an ACME answer: is the directory URL right, and no proxy in between?`},
	{name: "gateway", op: "order", pause: time.Minute, answer: func() *http.Response {
		return answer(502, "<html>Bad gateway</html>")
	}, want: `place order: Post "https://ca.example/order": HTTP status 502, an HTML page instead of an ACME answer: is the directory URL right, and no proxy in between?`},
	{name: "maintenance", op: "directory", pause: 2 * time.Hour, answer: func() *http.Response {
		return answer(503, "", "Retry-After", "7200")
	}, want: `reach the CA: https://ca.example/directory: HTTP status 503, and no explanation`},
	{name: "busy", op: "order", pause: 2 * time.Hour, answer: busy, want: "place order: serverInternal: come back later"},
	{name: "busy, directory", op: "directory", pause: 2 * time.Hour, answer: busy, want: "reach the CA: get directory at 'https://ca.example/directory': serverInternal: come back later"},
	{name: "busy, nonce", op: "nonce", pause: 2 * time.Hour, answer: func() *http.Response {
		return answer(503, "", "Retry-After", "7200")
	}, want: "register account: failed to post JWS message: failed to sign content: " +
		"failed to sign content: go-jose/go-jose: Error generating nonce: failed to get nonce from HTTP HEAD: 503 ::HEAD :: https://ca.example/nonce :: unexpected end of JSON input :: "},
	{name: "busy, account", op: "account", pause: 2 * time.Hour, answer: busy, want: "register account: serverInternal: come back later"},
	{name: "busy, authorization", op: "authz", pause: 2 * time.Hour, orders: 1, answer: busy, want: "read authorization: serverInternal: come back later"},
	{name: "busy, challenge", op: "challenge", pause: 2 * time.Hour, orders: 1, answer: busy, want: "answer challenge: serverInternal: come back later"},
	{name: "busy, order", op: "get", pause: 2 * time.Hour, orders: 1, answer: busy, want: "read order: serverInternal: come back later"},
	{name: "busy, finalize", op: "finalize", pause: 2 * time.Hour, orders: 1, answer: busy, want: "finalize order: serverInternal: come back later"},
	{name: "busy, certificate", op: "certificate", pause: 2 * time.Hour, orders: 1, answer: busy, want: "download certificate: serverInternal: come back later"},
	{name: "limit without its status", op: "order", pause: 2 * time.Hour, answer: func() *http.Response {
		return problem(503, "rateLimited", "Service busy; retry later.", "Retry-After", "7200")
	}, want: "place order: rateLimited: Service busy; retry later."},
	{name: "wrong directory", op: "directory", pause: time.Minute, answer: func() *http.Response {
		return answer(404, "nothing here")
	}, want: `reach the CA: https://ca.example/directory: HTTP status 404, an answer that is not JSON`},
	{name: "no directory", op: "directory", pause: time.Minute, answer: func() *http.Response { return answer(200, "{}") },
		want: `reach the CA: directory missing new registration URL`},
	{name: "DNS", op: "directory", pause: time.Minute, answer: func() *http.Response { return unreachable },
		want: `reach the CA: https://ca.example/directory: dial tcp: lookup ca.example: no such host`},
	{name: "truncated JSON", op: "authz", pause: time.Minute, orders: 1, answer: func() *http.Response {
		return answer(200, `{"status":"pending","identifier":{"type":"d`)
	}, want: `read authorization: Post "https://ca.example/authz/0/0": HTTP status 200, JSON that ends or breaks in the middle`},
	{name: "endless", op: "get", pause: time.Minute, orders: 1, answer: func() *http.Response {
		return answer(200, `{"status":"`+strings.Repeat("x", 2<<20)+`"}`)
	}, want: `read order: Post "https://ca.example/get/0": the answer is longer than 1048576 bytes`},
	{name: "server error", op: "order", pause: time.Minute, answer: func() *http.Response {
		return problem(500, "serverInternal", "Error creating new order\n(oops)")
	}, want: "place order: serverInternal: Error creating new order (oops)"},
	{name: "rejected", op: "order", pause: 3 * time.Hour, domain: "www.example.com", answer: func() *http.Response {
		return answer(400, `{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"Cannot issue","status":400,"subproblems":[`+
			`{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"policy","identifier":{"type":"dns","value":"www.example.com"}}]}`)
	}, want: "place order: rejectedIdentifier: Cannot issue; www.example.com: rejectedIdentifier: policy; this CA does not issue for the name; use another name or CA"},
	{name: "CAA", op: "finalize", pause: 3 * time.Hour, answer: func() *http.Response {
		return problem(403, "caa", "CAA record for example.com prevents issuance")
	}, want: "finalize order: caa: CAA record for example.com prevents issuance; allow this CA in the name's CAA record, or use another CA"},
	{name: "bad CSR", op: "finalize", pause: 3 * time.Hour, answer: func() *http.Response {
		return problem(400, "badCSR", "key too small")
	}, want: "finalize order: badCSR: key too small"},
	{name: "account unknown", op: "order", pause: 5 * time.Minute, answer: func() *http.Response {
		return problem(400, "accountDoesNotExist", "Account not found")
	}, want: "place order: accountDoesNotExist: Account not found; the CA does not know our account; if it was reset there, start the sidecar once with --new-account"},
	{name: "new terms", op: "order", pause: 5 * time.Minute, answer: func() *http.Response {
		return answer(403, `{"type":"urn:ietf:params:acme:error:userActionRequired","detail":"Terms have changed","status":403,"instance":"https://ca.example/terms"}`)
	}, want: "place order: userActionRequired: Terms have changed (https://ca.example/terms); agree to the CA's new terms at the address given, then renew"},
	{name: "binding", rig: func(b *bench) { b.ca.eab = true }, pause: 5 * time.Minute,
		want: "register account: externalAccountRequired; the CA wants external account binding: set SPOACME_EAB_KID and SPOACME_EAB_HMAC, which it gave you, in the sidecar's environment"},
	{name: "evil token", op: "authz", pause: 3 * time.Hour, domain: "shop.example.com", orders: 1, answer: func() *http.Response {
		return answer(200, `{"status":"pending","identifier":{"type":"dns","value":"shop.example.com"},"challenges":[{"type":"http-01","status":"pending","token":"../../etc/passwd","url":"https://ca.example/challenge/0/0"}]}`)
	}, want: "authorize shop.example.com: the CA's token is not one (RFC 8555 section 8.3)"},
	{name: "no http-01", op: "authz", pause: 3 * time.Hour, domain: "shop.example.com", orders: 1, answer: func() *http.Response {
		return answer(200, `{"status":"pending","identifier":{"type":"dns","value":"shop.example.com"},"challenges":[{"type":"dns-01","status":"pending","token":"t","url":"https://ca.example/challenge/0/0"}]}`)
	}, want: "authorize shop.example.com: the CA offers no http-01 challenge; use dns-01 or another CA"},
	{name: "one name fails", rig: failName("www.example.com"), pause: time.Minute, domain: "www.example.com",
		want: "validate www.example.com: unauthorized: the answer was wrong: not found; the name must lead to HAProxy on port 80, and its challenge rule must stand before redirects"},
	{name: "a name is missing", rig: func(b *bench) {
		b.ca.leaf = func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] }
	}, pause: 3 * time.Hour, want: "refuse the CA's certificate: check certificate: it does not hold www.example.com"},
	{name: "expired", rig: func(b *bench) {
		b.ca.leaf = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	}, pause: 3 * time.Hour, want: "refuse the CA's certificate: check certificate: it expired at 2026-01-19 23:59:00 UTC"},
	{name: "not yet valid", rig: func(b *bench) {
		b.ca.leaf = func(c *x509.Certificate) { c.NotBefore = time.Now().Add(24 * time.Hour) }
	}, pause: 3 * time.Hour, want: "refuse the CA's certificate: check certificate: it is not valid before 2026-01-21 00:00:00 UTC"},
	{name: "leaf only", rig: func(b *bench) {
		b.ca.chain = func(c []byte) []byte {
			block, _ := pem.Decode(c)
			return pem.EncodeToMemory(block)
		}
	}, pause: 3 * time.Hour, want: "refuse the CA's certificate: check certificate: the chain is incomplete: the issuer's certificate is missing"},
}

// busy is a CA that wants two hours of silence.
func busy() *http.Response {
	return problem(503, "serverInternal", "come back later", "Retry-After", "7200")
}

func failName(name string) func(b *bench) {
	return func(b *bench) {
		b.ca.validate = func(token string) string {
			for _, o := range b.ca.orders {
				for i, t := range o.tokens {
					if t == token && o.names[i] == name {
						return "not found"
					}
				}
			}
			return b.published(token)
		}
	}
}

func otherChain(m *model) []byte {
	t := *m.ca
	t.DNSNames = []string{"shop.example.com"}
	return chainPEM(m.sign(&t, m.ca, m.key.Public(), m.key), m.ca)
}

func TestBadCA(t *testing.T) {
	for _, c := range badAnswers {
		bubble(t, c.name, func(t *testing.T, b *bench) {
			if c.rig != nil {
				c.rig(b)
			}
			b.ca.intercept = func(r *request) *http.Response {
				if r.op == c.op {
					return c.answer()
				}
				return nil
			}
			b.demand("shop=shop.example.com,www.example.com")
			b.start()
			b.settle(50 * time.Second)
			a := read[*store.Attempt](b, store.KindAttempt, "shop")
			if a == nil {
				t.Fatal("no failure is stored")
			}
			if got := strings.Replace(a.Error, "/authz/0/1", "/authz/0/0", 1); got != c.want || a.Domain != c.domain {
				t.Errorf("of %q\n got %s\nwant %s", a.Domain, got, c.want)
			}
			if p := a.Next.Sub(a.Tried); p < c.pause || p > c.pause*11/10+2*time.Minute {
				t.Errorf("pause %s, want %s", p, c.pause)
			}
			if n := b.count(store.KindOrder); n != c.orders {
				t.Errorf("%d orders kept, want %d", n, c.orders)
			}
			if b.count(store.KindIssued) != 0 || b.count(store.KindChallenges) > b.count(store.KindOrder) {
				t.Error("tokens or a certificate are left")
			}
			b.recovers(c, a.Next)
		})
	}
}

// recovers demands silence until the pause is over, and a certificate afterwards.
func (b *bench) recovers(c bad, next time.Time) {
	b.t.Helper()
	before := b.ca.total(requests)
	b.settle(time.Until(next) - time.Second)
	if b.ca.total(requests) != before {
		b.t.Errorf("%d requests during the pause", b.ca.total(requests)-before)
	}
	b.rig(func(ca *model) {
		ca.intercept, ca.chain, ca.leaf, ca.eab, ca.validate = nil, nil, nil, false, b.published
	})
	b.settle(10 * time.Minute)
	if b.count(store.KindIssued) != 1 {
		b.t.Error("not issued when the CA was well again")
	}
	b.clean()
}

// A download that is no certificate for our key does not cost an order, unless it stays the same for hours.
func TestDamagedDownload(t *testing.T) {
	cut := func(c []byte) []byte { return c[:len(c)*3/4] }
	for _, c := range []struct {
		name   string
		damage func(ca *model, n int, chain []byte) []byte // of the n-th download from the first order
		want   string                                      // of the first
		orders int
		within time.Duration
	}{
		{"cut off once", func(_ *model, n int, c []byte) []byte {
			if n == 1 {
				return cut(c)
			}
			return c
		}, "refuse the CA's certificate: parse certificate: a PEM block is damaged or cut off", 1, 2 * time.Minute},
		{"cut off elsewhere each time", func(_ *model, n int, c []byte) []byte {
			if n < 15 {
				return c[:len(c)-10*n]
			}
			return c
		}, "refuse the CA's certificate: parse certificate: a PEM block is damaged or cut off", 1, 14 * time.Hour},
		{"always cut off", func(_ *model, _ int, c []byte) []byte {
			return cut(c)
		}, "refuse the CA's certificate: parse certificate: a PEM block is damaged or cut off", 2, 40 * time.Hour},
		{"for another key", func(ca *model, n int, c []byte) []byte {
			if n == 1 {
				return otherChain(ca)
			}
			return c
		}, "refuse the CA's certificate: parse certificate: the private key does not belong to any of the certificates", 1, 2 * time.Minute},
	} {
		bubble(t, c.name, func(t *testing.T, b *bench) {
			n := 0
			b.ca.download = func(o *modelOrder) []byte {
				if o != b.ca.orders[0] {
					return o.chain
				}
				n++
				return c.damage(b.ca, n, o.chain)
			}
			b.demand("shop=shop.example.com")
			b.start()
			b.settle(time.Second)
			a, o := read[*store.Attempt](b, store.KindAttempt, "shop"), read[*store.Order](b, store.KindOrder, "shop")
			if a == nil || a.Error != c.want || o == nil || o.URL == "" {
				t.Errorf("attempt %+v, order kept %t", a, o != nil)
			}
			b.demand("shop=shop.example.com", "blog=blog.example.com")
			b.settle(10 * time.Second)
			if read[*store.Certificate](b, store.KindIssued, "blog") == nil {
				t.Error("another certificate was held up")
			}
			b.settle(c.within)
			if b.count(store.KindIssued) != 2 || b.ca.issued()["shop.example.com"] != c.orders {
				t.Errorf("%d stored, %v signed", b.count(store.KindIssued), b.ca.issued())
			}
			b.clean()
		})
	}
}

// What is untidy but right is made tidy.
func TestUntidyChain(t *testing.T) {
	bubble(t, "CRLF, order, comments", func(t *testing.T, b *bench) {
		b.ca.chain = func(c []byte) []byte {
			leaf, rest := pem.Decode(c)
			mixed := append([]byte("\n# chain\n\n"), rest...)
			mixed = append(mixed, pem.EncodeToMemory(leaf)...)
			return bytes.ReplaceAll(mixed, []byte("\n"), []byte("\r\n"))
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		c := read[*store.Certificate](b, store.KindIssued, "shop")
		if c == nil || !strings.HasPrefix(c.Chain, "-----BEGIN CERTIFICATE-----\n") || strings.Contains(c.Chain, "\n\n") {
			t.Errorf("stored %+v", c)
		}
	})
}
