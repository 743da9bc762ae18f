package dataplane

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// versions of HAProxy that everything must work on.
var versions = []string{"2.2", "2.6", "3.0", "3.2"}

// ca signs the certificates of a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca", Organization: []string{"test"}},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(24 * 365 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &ca{cert: must(x509.ParseCertificate(der)), key: key}
}

// leaf describes a certificate; age is since its notBefore.
type leaf struct {
	names []string
	age   time.Duration
	rsa   int // bits; 0: ECDSA
	pad   int // bytes of padding in the certificate
}

func (c *ca) issue(t testing.TB, l leaf) *store.Bundle {
	t.Helper()
	var key crypto.Signer
	if l.rsa > 0 {
		key = must(rsa.GenerateKey(rand.Reader, l.rsa))
	} else {
		key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	}
	tmpl := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))),
		Subject:      pkix.Name{CommonName: l.names[0]}, DNSNames: l.names,
		NotBefore: time.Now().Add(-l.age - time.Second), NotAfter: time.Now().Add(-l.age).Add(90 * 24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if l.pad > 0 {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: bytes.Repeat([]byte{5}, l.pad)}}
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key))
	var text []byte
	for _, d := range [][]byte{der, c.cert.Raw} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})...)
	b, err := store.ParseBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// site is a real HAProxy in master-worker mode with folders of its own.
type site struct {
	t       testing.TB
	version string
	dir     string // everything below
	crtDir  string
	crtList string // file
	socket  string
	tls     string // address of the TLS listener, a unix socket
	cmd     *exec.Cmd
	config  string
}

const siteConfig = `
global
    stats socket DIR/admin.sock mode 600 level admin EXPOSE
    stats timeout 1m
    GLOBAL
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend https
    bind unix@DIR/tls.sock ssl BIND
    http-request return status 200 content-type text/plain string ok
backend certificates
    balance roundrobin
`

// newSite prepares a HAProxy whose bind line is given; DIR in it is the site's directory.
func newSite(t testing.TB, version, bind string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{t: t, version: version, dir: dir, crtDir: filepath.Join(dir, "crt"), socket: filepath.Join(dir, "admin.sock"), tls: filepath.Join(dir, "tls.sock")}
	s.crtList = filepath.Join(s.crtDir, "crt-list")
	s.config = strings.NewReplacer("BIND", bind, "GLOBAL", "", "EXPOSE", "expose-fd listeners").Replace(siteConfig)
	if err := os.Mkdir(s.crtDir, 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// withList is a site with a default certificate and an empty crt-list.
func withList(t testing.TB, version string) (*site, *ca) {
	t.Helper()
	s, c := newSite(t, version, "crt DIR/default.pem crt-list DIR/crt/crt-list"), newCA(t)
	s.write("default.pem", c.issue(t, leaf{names: []string{"default.example"}}).PEM())
	s.write("crt/crt-list", nil)
	return s, c
}

func (s *site) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) binary() string {
	s.t.Helper()
	path, err := filepath.Abs(filepath.Join("..", ".tools", "haproxy", s.version, "haproxy"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		s.t.Fatalf("no HAProxy %s; run: make tools", s.version)
	}
	return path
}

func (s *site) save() string {
	s.t.Helper()
	s.write("haproxy.cfg", []byte(strings.ReplaceAll(s.config, "DIR", s.dir)))
	return filepath.Join(s.dir, "haproxy.cfg")
}

// start launches it and waits until it answers.
func (s *site) start() *site {
	s.t.Helper()
	log := must(os.Create(filepath.Join(s.dir, "log")))
	s.cmd = exec.Command(s.binary(), "-W", "-f", s.save())
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH=")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd := s.cmd
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = log.Close()
		if s.t.Failed() {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Logf("HAProxy %s:\n%s", s.version, text)
		}
	})
	s.wait("HAProxy answers", func() bool { return s.pid() != 0 })
	return s
}

func (s *site) wait(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("not within a minute: %s\n%s", what, text)
		}
		pauseFor(5 * time.Millisecond)
	}
}

func pauseFor(d time.Duration) { <-time.After(d) }

// cli sends one command as it is.
func (s *site) cli(command string) string {
	c, err := net.DialTimeout("unix", s.socket, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "%s\n", command)
	var b bytes.Buffer
	_, _ = b.ReadFrom(c)
	return b.String()
}

func (s *site) pid() int {
	p, err := parseInfo([]byte(s.cli("show info")))
	if err != nil {
		return 0
	}
	return p.PID
}

// signalReload asks for a reload and does not wait.
func (s *site) signalReload() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		s.t.Fatal(err)
	}
}

// reload waits for the new worker.
func (s *site) reload() {
	s.t.Helper()
	old := s.pid()
	s.signalReload()
	s.wait("a new worker answers", func() bool { p := s.pid(); return p != 0 && p != old })
}

// kill9 kills master and workers.
func (s *site) kill9() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait()
	s.wait("HAProxy is gone", func() bool { return s.pid() == 0 })
}

// check runs haproxy -c.
func (s *site) check() error {
	out, err := exec.Command(s.binary(), "-c", "-f", s.save()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("haproxy -c: %w\n%s", err, out)
	}
	return nil
}

// serves returns the fingerprint that a TLS client with this name gets, "" when none.
func (s *site) serves(name string) string {
	raw, err := net.DialTimeout("unix", s.tls, time.Second)
	if err != nil {
		return ""
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if c.Handshake() != nil {
		return ""
	}
	peer := c.ConnectionState().PeerCertificates[0]
	return LeafFingerprint(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: peer.Raw}))
}

// open returns the object under test.
func (s *site) open(change ...func(*Config)) *HAProxy {
	s.t.Helper()
	c := Config{Socket: s.socket, StateDir: filepath.Join(s.dir, "state"), Logger: testLogger(s.t)}
	for _, f := range change {
		f(&c)
	}
	h, err := Open(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = h.Close() })
	return h
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// each runs f with a parallel subtest per version.
func each(t *testing.T, f func(t *testing.T, version string)) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) { f(t, v) })
	}
}
