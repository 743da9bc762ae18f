package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// authority looks at what goes to and from the ACME server: before it is asked to look for a token, HAProxy must answer
// that token; while an order for a name is open, there must be no other one for it.
type authority struct {
	haproxy string // address of the frontend of port 80
	client  *http.Client

	mu     sync.Mutex
	thumbs map[string]string     // thumbprint of the key, by URL of the account
	tokens map[string]string     // by URL of the challenge
	orders map[string]*openOrder // that are open, by id
	asked  int                   // tokens that HAProxy was asked for
	wait   bool                  // for the answer: see patient
	broke  bool                  // see down
	errs   []error
}

type openOrder struct {
	names          []string
	authorizations []string
}

func newAuthority(haproxy string) *authority {
	a := &authority{haproxy: haproxy, client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	a.forget()
	return a
}

// forget is for an authority that was restarted and knows nothing any more.
func (a *authority) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.thumbs, a.tokens, a.orders = map[string]string{}, map[string]string{}, map[string]*openOrder{}
}

// broken returns what was wrong.
func (a *authority) broken() []error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == 0 {
		return append(a.errs, fmt.Errorf("no token was looked for: the check is blind"))
	}
	return a.errs
}

// message is the body of an ACME request (RFC 8555 section 6.2).
type message struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"`
}

// header is the part of Protected that matters here.
type header struct {
	Account string            `json:"kid"`
	Key     map[string]string `json:"jwk"`
}

// resource is what all answers have in common that matters here.
type resource struct {
	Status         string                        `json:"status"`
	Identifiers    []struct{ Value string }      `json:"identifiers"`
	Authorizations []string                      `json:"authorizations"`
	Challenges     []struct{ URL, Token string } `json:"challenges"`
}

func (a *authority) intercept(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if a.isDown() {
			http.Error(w, "<html>out of order</html>", http.StatusInternalServerError)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var m message
		var h header
		if json.Unmarshal(body, &m) == nil {
			protected, _ := base64.RawURLEncoding.DecodeString(m.Protected)
			_ = json.Unmarshal(protected, &h)
		}
		if strings.HasPrefix(r.URL.Path, "/chalZ/") && m.Payload != "" {
			a.askHAProxy(h.Account, "https://"+r.Host+r.URL.Path)
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		a.saw(r, h, answer)
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
}

// down makes the authority answer with errors of its own, or no longer.
func (a *authority) down(broken bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broke = broken
}

func (a *authority) isDown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.broke
}

// patient makes the authority wait for HAProxy to answer, while HAProxy is reloaded.
func (a *authority) patient(wait bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wait = wait
}

// askHAProxy asks for a token as the authority is about to do.
func (a *authority) askHAProxy(account, challenge string) {
	a.mu.Lock()
	token, thumb, wait := a.tokens[challenge], a.thumbs[account], a.wait
	a.asked++
	a.mu.Unlock()
	err := a.askOnce(token, token+"."+thumb)
	if err != nil && wait {
		err = fixture.Await(context.Background(), 5*time.Second, func() error { return a.askOnce(token, token+"."+thumb) })
	}
	if err != nil || token == "" || thumb == "" {
		a.fail("token %s: %w", token, err)
	}
}

func (a *authority) askOnce(token, want string) error {
	res, err := a.client.Get("http://" + a.haproxy + "/.well-known/acme-challenge/" + token)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || string(got) != want {
		return fmt.Errorf("HAProxy answers %s %q (%v), not %q", res.Status, got, err, want)
	}
	return nil
}

func (a *authority) fail(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errs = append(a.errs, fmt.Errorf(format, args...))
}

// saw keeps what an answer tells.
func (a *authority) saw(r *http.Request, h header, answer *httptest.ResponseRecorder) {
	var got resource
	if answer.Code >= 300 || json.Unmarshal(answer.Body.Bytes(), &got) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	location, id := answer.Header().Get("Location"), path.Base(r.URL.Path)
	switch p := r.URL.Path; {
	case p == "/sign-me-up":
		a.thumbs[location] = thumbprint(h.Key)
	case p == "/order-plz":
		a.ordered(path.Base(location), got)
	case strings.HasPrefix(p, "/my-order/"), strings.HasPrefix(p, "/finalize-order/"):
		if got.Status == "valid" || got.Status == "invalid" {
			delete(a.orders, id)
		}
	case strings.HasPrefix(p, "/authZ/"):
		for _, c := range got.Challenges {
			a.tokens[c.URL] = c.Token
		}
		if got.Status != "pending" && got.Status != "valid" {
			a.ended("https://" + r.Host + p)
		}
	}
}

func (a *authority) ordered(id string, got resource) {
	o := &openOrder{authorizations: got.Authorizations}
	for _, i := range got.Identifiers {
		o.names = append(o.names, i.Value)
	}
	for _, other := range a.orders {
		for _, name := range o.names {
			if slices.Contains(other.names, name) {
				a.errs = append(a.errs, fmt.Errorf("two orders for %s at once", name))
			}
		}
	}
	a.orders[id] = o
}

// ended drops the orders that need an authorization that will never be valid.
func (a *authority) ended(authorization string) {
	for id, o := range a.orders {
		if slices.Contains(o.authorizations, authorization) {
			delete(a.orders, id)
		}
	}
}

// thumbprint is that of RFC 7638.
func thumbprint(key map[string]string) string {
	needed := make(map[string]string)
	for _, field := range []string{"kty", "crv", "x", "y", "n", "e"} {
		if v, ok := key[field]; ok {
			needed[field] = v
		}
	}
	b, _ := json.Marshal(needed) // in the order of the names
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
