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
	set(second, "two-two", "token-two-two")
	get()
	token := env["CONSUL_HTTP_TOKEN_FILE"]
	info, err := os.Stat(token)
	if err != nil {
		t.Fatal(err)
	}
	write(t, token, []byte("token-two-TWO\n"))
	if err := os.Chtimes(token, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != "two-two token-two-TWO HTTP/2.0" {
		t.Error("a token replaced within one tick of the file system's clock:", got)
	}
	write(t, token, nil)
	if got := get(); got != "two-two token-two-TWO HTTP/2.0" {
		t.Error("a token file that was emptied, to be written:", got)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	if got := get(); got != "two-two token-two-TWO HTTP/2.0" {
		t.Error("a removed token file:", got)
	}
}

func TestBadCredentials(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	a := newAuthority(t)
	cert, key := a.issue(t, "client")
	for name, content := range map[string][]byte{
		"empty": nil, "blank": []byte(" \n"), "words": []byte("words\n"), "large": make([]byte, maxCredentials+1),
		"cert": cert, "key": key, "other": second(a.issue(t, "other")), "ca": a.pem(),
	} {
		write(t, path(name), content)
	}
	for _, test := range []struct{ name, env, want string }{
		{"no token file", "CONSUL_HTTP_TOKEN_FILE=absent", "read CONSUL_HTTP_TOKEN_FILE: open DIR/absent: no such file or directory"},
		{"empty token file", "CONSUL_HTTP_TOKEN_FILE=empty", "read CONSUL_HTTP_TOKEN_FILE: DIR/empty is empty: write the token into it, or unset the variable"},
		{"blank token file", "CONSUL_HTTP_TOKEN_FILE=blank", "read CONSUL_HTTP_TOKEN_FILE: DIR/blank is empty: write the token into it, or unset the variable"},
		{"large token file", "CONSUL_HTTP_TOKEN_FILE=large", "read CONSUL_HTTP_TOKEN_FILE: DIR/large has more than 1048576 bytes"},
		{"no CA", "CONSUL_CACERT=absent", "read the CA of Consul: open DIR/absent: no such file or directory"},
		{"not a CA", "CONSUL_CACERT=words", "read the CA of Consul: no certificate in DIR/words"},
		{"no CAs", "CONSUL_CAPATH=absent", "read the CA of Consul: CONSUL_CAPATH has no files"},
		{"no key", "CONSUL_CLIENT_CERT=cert CONSUL_CLIENT_KEY=absent", "read CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: open DIR/absent: no such file or directory\ntls: failed to find any PEM data in key input"},
		{"another key", "CONSUL_CLIENT_CERT=cert CONSUL_CLIENT_KEY=other", "read CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: tls: private key does not match public key"},
		{"all well", "CONSUL_CACERT=ca CONSUL_CLIENT_CERT=cert CONSUL_CLIENT_KEY=key", ""},
	} {
		env := map[string]string{}
		for _, v := range strings.Fields(test.env) {
			variable, name, _ := strings.Cut(v, "=")
			env[variable] = path(name)
		}
		getenv := func(name string) string { return env[name] }
		_, _, err := readFiles(getenv).parse(true, getenv)
		got := ""
		if err != nil {
			got = strings.ReplaceAll(err.Error(), dir, "DIR")
		}
		if got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, got, test.want)
		}
	}
}

func second[T any](_, b T) T { return b }

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
