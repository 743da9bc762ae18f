package integration

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// forger is an authority that signs what no authority should.
type forger struct {
	t    *testing.T
	key  crypto.Signer
	root *x509.Certificate
}

func newForger(t *testing.T) *forger {
	f := &forger{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Forged CA"}, NotBefore: time.Now().AddDate(0, 0, -30),
		NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	f.root = f.sign(template, template, f.key.Public())
	return f
}

func newKey(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func (f *forger) sign(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, f.key)
	if err != nil {
		f.t.Error(err)
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Error(err)
	}
	return c
}

// forge signs the leaf of a chain anew, changed.
func (f *forger) forge(chain []byte, change func(*x509.Certificate)) []byte {
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.t.Error(err)
		return nil
	}
	template := &x509.Certificate{
		SerialNumber: leaf.SerialNumber, PublicKey: leaf.PublicKey, DNSNames: leaf.DNSNames, NotBefore: leaf.NotBefore,
		NotAfter: leaf.NotAfter, KeyUsage: leaf.KeyUsage, ExtKeyUsage: leaf.ExtKeyUsage,
	}
	change(template)
	return chainOf(f.sign(template, f.root, template.PublicKey), f.root)
}

func chainOf(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

// problem is an error of the CA (RFC 8555 section 6.7).
func problem(status int, kind, detail string, header ...string) fixture.Answer {
	b, _ := json.Marshal(map[string]any{"type": "urn:ietf:params:acme:error:" + kind, "detail": detail, "status": status})
	a := fixture.Answer{Status: status, Header: http.Header{"Content-Type": {"application/problem+json"}}, Body: b}
	for i := 0; i+1 < len(header); i += 2 {
		a.Header.Set(header[i], header[i+1])
	}
	return a
}

// nonce gives an answer a nonce, as Pebble's own have one.
func nonce(a fixture.Answer) fixture.Answer {
	a.Header.Set("Replay-Nonce", fmt.Sprint("odd", time.Now().UnixNano()))
	return a
}
