package consul

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// transport carries the requests. It reads the files of token, CA and client certificate again and again,
// which Consul's own client does not.
type transport struct {
	addr   address
	getenv func(string) string
	// received counts the bytes of answers; may be nil.
	received prometheus.Counter
	given    http.RoundTripper // carries the requests in place of connections of its own; nil for those
	log      *slog.Logger      // may be nil

	mu      sync.Mutex
	checked time.Time
	digest  digest // of the files in force
	bad     badFiles
	token   string
	base    *http.Transport
}

// recheck is how long a changed file may go unnoticed.
const recheck = time.Second

func newTransport(addr address, getenv func(string) string, log *slog.Logger) (*transport, error) {
	t := &transport{addr: addr, getenv: getenv, log: log}
	_, _, err := t.current()
	return t, err
}

type statusKey struct{}

// RoundTrip implements http.RoundTripper. It leaves the status in the *int that the context has for it.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base, token, err := t.current()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Del("X-Consul-Token")
	if token != "" {
		r.Header.Set("X-Consul-Token", token)
	}
	var way http.RoundTripper = base
	if t.given != nil {
		way = t.given
	}
	resp, err := way.RoundTrip(r)
	if status, ok := r.Context().Value(statusKey{}).(*int); ok && resp != nil {
		*status = resp.StatusCode
	}
	if err == nil && t.received != nil {
		resp.Body = &counted{resp.Body, t.received}
	}
	return resp, err
}

// counted counts what is read.
type counted struct {
	io.ReadCloser
	bytes prometheus.Counter
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.bytes.Add(float64(n))
	return n, err
}

// current returns the connections and the token to use now. When changed files can't be used the last good ones stay.
func (t *transport) current() (*http.Transport, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil && time.Since(t.checked) < recheck {
		return t.base, t.token, nil
	}
	t.checked = time.Now()
	files := readFiles(t.getenv)
	if t.base != nil && files.digest == t.digest {
		return t.base, t.token, nil
	}
	token, config, err := files.parse(t.addr.scheme == "https", t.getenv)
	if err == nil {
		t.digest, t.token = files.digest, token
		if t.base != nil {
			t.base.CloseIdleConnections()
		}
		t.base = t.dialer(config)
	}
	if t.base == nil {
		return nil, "", err
	}
	if err != nil && t.bad.news(files.digest) && t.log != nil {
		t.log.Warn("changed files for Consul can't be used, the last good ones stay in force", "err", err)
	}
	return t.base, t.token, nil
}

// badFiles are changed files that could not be used.
type badFiles struct {
	digest digest
	times  int
}

// news reports whether files are to be complained of: once, and not while they are being written one after the other.
func (b *badFiles) news(d digest) bool {
	if d != b.digest {
		*b = badFiles{digest: d}
	}
	b.times++
	return b.times == 3
}

// dialer makes connections: enough idle ones for all watches of a process, and HTTP/2 where TLS is spoken.
func (t *transport) dialer(config *tls.Config) *http.Transport {
	d := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	dial := d.DialContext
	if t.addr.socket != "" {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", t.addr.socket)
		}
	}
	return &http.Transport{
		DialContext:         dial,
		TLSClientConfig:     config,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 3 * time.Second,
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true, // the agent is on this host: the bytes cost nothing, compressing them does
		IdleConnTimeout:     90 * time.Second,
		// A connection whose other end is gone must not swallow one request after the other.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
}
