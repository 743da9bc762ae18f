package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// transport carries the requests. It reads the files of token, CA and client certificate again when they changed,
// which Consul's own client does not.
type transport struct {
	addr   address
	getenv func(string) string
	// received counts the bytes of answers; may be nil.
	received prometheus.Counter
	log      *slog.Logger // may be nil

	mu      sync.Mutex
	checked time.Time
	stamp   string // of all files together
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
	resp, err := base.RoundTrip(r)
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
	stamp := t.stat()
	if t.base != nil && stamp == t.stamp {
		return t.base, t.token, nil
	}
	token, err := t.readToken()
	if err == nil {
		var config *tls.Config
		if config, err = t.readTLS(); err == nil {
			t.stamp, t.token = stamp, token
			if t.base != nil {
				t.base.CloseIdleConnections()
			}
			t.base = t.dialer(config)
		}
	}
	if t.base == nil {
		return nil, "", err
	}
	if err != nil && t.bad.news(stamp) && t.log != nil {
		t.log.Warn("changed files for Consul can't be used, the last good ones stay in force", "err", err)
	}
	return t.base, t.token, nil
}

// badFiles are changed files that could not be used.
type badFiles struct {
	stamp string
	times int
}

// news reports whether files are to be complained of: once, and not while they are being written one after the other.
func (b *badFiles) news(stamp string) bool {
	if stamp != b.stamp {
		*b = badFiles{stamp: stamp}
	}
	b.times++
	return b.times == 3
}

func (t *transport) stat() string {
	var b strings.Builder
	for _, name := range []string{"CONSUL_HTTP_TOKEN_FILE", "CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"} {
		if info, err := os.Stat(t.getenv(name)); err == nil {
			fmt.Fprintf(&b, "%d %d;", info.ModTime().UnixNano(), info.Size())
		} else {
			b.WriteString("-;")
		}
	}
	return b.String()
}

func (t *transport) readToken() (string, error) {
	file := t.getenv("CONSUL_HTTP_TOKEN_FILE")
	if file == "" {
		return t.getenv("CONSUL_HTTP_TOKEN"), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read CONSUL_HTTP_TOKEN_FILE: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// readTLS returns nil when no TLS is spoken.
func (t *transport) readTLS() (*tls.Config, error) {
	if t.addr.scheme != "https" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.getenv("CONSUL_TLS_SERVER_NAME")}
	if verify, err := strconv.ParseBool(t.getenv("CONSUL_HTTP_SSL_VERIFY")); err == nil && !verify {
		config.InsecureSkipVerify = true //nolint:gosec // the operator's own setting
	}
	files, err := t.caFiles()
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the CA of Consul: %w", err)
		}
		if config.RootCAs == nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the CA of Consul: no certificate in %s", file)
		}
	}
	cert, key := t.getenv("CONSUL_CLIENT_CERT"), t.getenv("CONSUL_CLIENT_KEY")
	if cert == "" && key == "" {
		return config, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

func (t *transport) caFiles() ([]string, error) {
	var files []string
	if f := t.getenv("CONSUL_CACERT"); f != "" {
		files = append(files, f)
	}
	if dir := t.getenv("CONSUL_CAPATH"); dir != "" {
		found, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(found) == 0 {
			return nil, errors.New("read the CA of Consul: CONSUL_CAPATH has no files")
		}
		files = append(files, found...)
	}
	return files, nil
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
