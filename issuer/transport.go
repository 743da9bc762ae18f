package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-acme/lego/v4/acme"
)

const (
	requestTimeout = 30 * time.Second
	maxAnswer      = 1 << 20
	clockKept      = 10 * time.Minute
)

// defaultHTTP is for CAs that the system's roots know.
func defaultHTTP() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64
	t.ResponseHeaderTimeout = requestTimeout
	return &http.Client{Transport: t}
}

// transport carries one lease's requests to one CA. The library above it knows neither contexts nor limits, so they
// are here: every request ends with the lease or after requestTimeout, an answer is at most maxAnswer long and is what
// the library expects (JSON, a problem document, PEM), or an httpError that says what came instead.
// It also keeps what the library drops: Retry-After and the CA's clock.
type transport struct {
	base    http.RoundTripper
	ctx     context.Context
	observe func(status int, took time.Duration)

	mu     sync.Mutex
	after  map[string]time.Time // Retry-After of the last answer, by URL, until it is asked for
	nonces time.Time            // Retry-After of the last request for a nonce, if that was refused
	clock  time.Time            // the CA's Date
	readAt time.Time            // when it was read
}

// httpError is an answer that is not ACME's.
type httpError struct {
	status int
	until  time.Time
	what   string
}

func (e *httpError) Error() string {
	return fmt.Sprintf("HTTP status %d, %s", e.status, e.what)
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeoutCause(t.ctx, requestTimeout, fmt.Errorf("no answer within %s", requestTimeout))
	defer cancel()
	start := time.Now()
	resp, body, err := t.fetch(req.Clone(ctx))
	if err != nil {
		t.observe(0, time.Since(start))
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	t.observe(resp.StatusCode, time.Since(start))
	t.note(req, resp)
	if req.Method != http.MethodHead {
		if what := notACME(resp.StatusCode, body); what != "" {
			return nil, &httpError{resp.StatusCode, retryAfter(resp.Header), what}
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// fetch reads the whole answer, so that nobody above has to close it.
func (t *transport) fetch(req *http.Request) (*http.Response, []byte, error) {
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return resp, body, nil
}

// notACME says what is wrong with an answer, nothing when it is one that an ACME server gives.
func notACME(status int, body []byte) string {
	text := bytes.TrimSpace(body)
	switch {
	case status >= 300 && status < 400, status < 400 && len(text) == 0:
		return ""
	case status < 400 && bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----")):
		return ""
	case len(text) == 0:
		return "and no explanation"
	case text[0] == '<':
		return "an HTML page instead of an ACME answer: is the directory URL right, and no proxy in between?"
	case text[0] != '{':
		return "an answer that is not JSON"
	case !json.Valid(text):
		return "JSON that ends or breaks in the middle"
	}
	return ""
}

func (t *transport) note(req *http.Request, resp *http.Response) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, url := retryAfter(resp.Header), req.URL.String()
	if delete(t.after, url); !at.IsZero() {
		if len(t.after) > 1000 { // of answers that nobody asked about
			clear(t.after)
		}
		t.after[url] = at
	}
	if req.Method == http.MethodHead { // the library asks for nothing else but nonces like that
		if t.nonces = at; resp.StatusCode < 400 {
			t.nonces = time.Time{}
		}
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		t.clock, t.readAt = date, time.Now()
	}
}

// delayed is an error of the library with the Retry-After that came with it.
type delayed struct {
	error
	until time.Time
}

func (e *delayed) Unwrap() error { return e.error }

// explain gives an error of the library back what the library has dropped of the answer.
func (t *transport) explain(err error) error {
	var p *acme.ProblemDetails
	var until time.Time
	switch {
	case err == nil, errors.As(err, new(*httpError)), errors.As(err, new(*delayed)):
		return err
	case errors.As(err, &p):
		until = t.retryAfterOf(p.URL)
	default:
		until = t.noncesAfter()
	}
	if until.IsZero() {
		return err
	}
	return &delayed{err, until}
}

// noncesAfter is when the CA gives nonces again, if it has just refused one. The library's error for it says nothing but text.
func (t *transport) noncesAfter() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.nonces.After(time.Now()) {
		return time.Time{}
	}
	return t.nonces
}

// retryAfterOf returns, once, what the last answer from a URL said.
func (t *transport) retryAfterOf(url string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.after[url]
	delete(t.after, url)
	return at
}

// now is the CA's time where it told it lately and ours is off by more than five minutes; otherwise ours. The CA's goes
// on by our monotonic clock, which nobody sets.
func (t *transport) now() (at time.Time, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	passed := now.Sub(t.readAt)
	if t.clock.IsZero() || passed > clockKept {
		return now, false
	}
	theirs := t.clock.Add(passed)
	if d := theirs.Sub(now.Round(0)); d > 5*time.Minute || d < -5*time.Minute {
		return theirs, true
	}
	return now, true
}

// retryAfter reads the header in both its forms, a date by the CA's own clock; the zero time without one.
func retryAfter(h http.Header) time.Time {
	const most = 30 * 24 * time.Hour
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Now().Add(min(time.Duration(min(n, 1e9))*time.Second, most))
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return time.Time{}
	}
	theirs, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		theirs = time.Now()
	}
	return time.Now().Add(min(max(at.Sub(theirs), 0), most))
}

// ended reports whether err is the end of ctx and no fault of the CA.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled)
}
