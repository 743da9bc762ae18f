package consul

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// authority signs the certificates of a test's Consul and of its clients.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue returns a certificate and its key as PEM.
func (a authority) issue(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, priv.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// forget makes the transport look at its files again at once.
func (t *transport) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checked = time.Time{}
}

// echo is a server that asks for a client certificate of one of the authorities, and answers with its name and the token.
func echo(t *testing.T, authorities ...authority) string {
	t.Helper()
	clients := x509.NewCertPool()
	for _, a := range authorities {
		clients.AddCert(a.cert)
	}
	cert, key := authorities[0].issue(t, "consul")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.Header.Get("X-Consul-Token") + " " + r.Proto))
	}))
	server.TLS = &tls.Config{
		ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{pair},
	}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// answer is what the server of that address says to this transport, which looks at its files first.
func (t *transport) answer(tb testing.TB, url string) string {
	tb.Helper()
	t.forget()
	req := httptest.NewRequest(http.MethodGet, url, nil)
	req.RequestURI = ""
	resp, err := t.RoundTrip(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func TestChangedFilesAreReadAgain(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	url, dir := echo(t, first, second), t.TempDir()
	env := map[string]string{"CONSUL_HTTP_ADDR": url}
	for _, name := range []string{"CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", "CONSUL_HTTP_TOKEN_FILE"} {
		env[name] = filepath.Join(dir, name)
	}
	set := func(a authority, name, token string) {
		cert, key := a.issue(t, name)
		write(t, env["CONSUL_CACERT"], append(first.pem(), second.pem()...))
		write(t, env["CONSUL_CLIENT_CERT"], cert)
		write(t, env["CONSUL_CLIENT_KEY"], key)
		write(t, env["CONSUL_HTTP_TOKEN_FILE"], []byte(token+"\n"))
	}
	set(first, "one", "token-one")
	getenv := func(name string) string { return env[name] }
	addr, err := parseURL("consul:///le", getenv)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	rt, err := newTransport(addr, getenv, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	get := func() string { return rt.answer(t, url) }
	if got := get(); got != "one token-one HTTP/2.0" {
		t.Error(got)
	}
	set(second, "two-two", "token-two-two")
	if got := get(); got != "two-two token-two-two HTTP/2.0" {
		t.Error("after the change:", got)
	}
	write(t, env["CONSUL_CLIENT_KEY"], []byte("half of a"))
	if got := get(); !strings.HasPrefix(got, "two-two ") {
		t.Error("a half-written file took the last good one away:", got)
	}
	if log.Len() > 0 {
		t.Errorf("complained while files were being written: %s", &log)
	}
	for range 5 {
		get()
	}
	if n := strings.Count(log.String(), "CONSUL_CLIENT_KEY"); n != 1 {
		t.Errorf("complained %d times: %s", n, &log)
	}
	if err := os.Remove(env["CONSUL_HTTP_TOKEN_FILE"]); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != "two-two token-two-two HTTP/2.0" {
		t.Error("a removed token file:", got)
	}
}

func TestLeaseEndsByEitherClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		for name, test := range map[string]struct {
			renewed time.Time
			ends    bool
		}{
			"just now":            {start, false},
			"a second before":     {start.Add(-ttl + time.Second), false},
			"at its time":         {start.Add(-ttl), true},
			"by the wall clock":   {start.Round(0).Add(-ttl), true},
			"wall clock set back": {start.Round(0).Add(time.Hour), false},
		} {
			l := newTestLease(test.renewed)
			if err := l.holds(); (err != nil) != test.ends {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func newTestLease(renewed time.Time) *leaseTerm {
	l := &leaseTerm{renewed: renewed}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}
