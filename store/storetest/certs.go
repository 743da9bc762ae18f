package storetest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// CA issues certificates for tests: from an intermediate below a root.
type CA struct {
	Root, Intermediate *x509.Certificate

	tb       testing.TB
	key      crypto.Signer // of the intermediate
	lastLeaf int64
}

// Leaf says what a test wants of a certificate. The zero value of a field stands for what is usual.
type Leaf struct {
	Domains             []string      // default example.com
	NotBefore, NotAfter time.Time     // default an hour ago, 90 days from then
	Key                 crypto.Signer // default a new P-256 key
	Usage               []x509.ExtKeyUsage
	SelfSigned          bool // with no issuer: a placeholder
}

// NewCA makes a CA of an organization.
func NewCA(tb testing.TB, organization string) *CA {
	tb.Helper()
	ca := &CA{tb: tb, lastLeaf: 0xabc}
	from, to := time.Now().AddDate(-10, 0, 0), time.Now().AddDate(100, 0, 0)
	rootKey := NewKey(tb)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to,
		Subject: pkix.Name{Organization: []string{organization}, CommonName: organization + " root"},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca.Root = ca.sign(root, root, rootKey.Public(), rootKey)
	ca.key = NewKey(tb)
	intermediate := *root
	intermediate.SerialNumber = big.NewInt(2)
	intermediate.Subject.CommonName = organization + " intermediate"
	ca.Intermediate = ca.sign(&intermediate, ca.Root, ca.key.Public(), rootKey)
	return ca
}

// NewKey makes a P-256 key.
func NewKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Issue makes a certificate and returns its chain, leaf and intermediate, and its key, both as PEM.
func (ca *CA) Issue(want Leaf) (chain, key []byte) {
	ca.tb.Helper()
	if want.Domains == nil {
		want.Domains = []string{"example.com"}
	}
	if want.NotBefore.IsZero() {
		want.NotBefore = time.Now().Add(-time.Hour)
	}
	if want.NotAfter.IsZero() {
		want.NotAfter = want.NotBefore.AddDate(0, 0, 90)
	}
	if want.Key == nil {
		want.Key = NewKey(ca.tb)
	}
	if want.Usage == nil {
		want.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	ca.lastLeaf++
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(ca.lastLeaf), NotBefore: want.NotBefore, NotAfter: want.NotAfter,
		Subject:  pkix.Name{CommonName: want.Domains[0]},
		DNSNames: want.Domains, ExtKeyUsage: want.Usage, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if want.SelfSigned {
		chain = PEM(ca.sign(leaf, leaf, want.Key.Public(), want.Key))
	} else {
		chain = PEM(ca.sign(leaf, ca.Intermediate, want.Key.Public(), ca.key), ca.Intermediate)
	}
	der, err := x509.MarshalPKCS8PrivateKey(want.Key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (ca *CA) sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	ca.tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return cert
}

// PEM encodes certificates.
func PEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// Bundle issues and parses.
func (ca *CA) Bundle(want Leaf) *store.Bundle {
	ca.tb.Helper()
	chain, key := ca.Issue(want)
	b, err := store.ParseBundle(chain, key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return b
}

// Certificate issues and makes the record.
func (ca *CA) Certificate(name string, want Leaf) *store.Certificate {
	ca.tb.Helper()
	b := ca.Bundle(want)
	return &store.Certificate{
		Name: name, Domains: b.Domains, Chain: string(b.Chain()), Private: store.NewSecret(b.Key()),
		Serial: b.Serial, Fingerprint: b.Fingerprint, Issuer: b.Issuer,
		NotBefore: b.NotBefore, NotAfter: b.NotAfter, IssuedAt: b.NotBefore,
		CA: "https://ca.example/directory", Generation: 1,
	}
}
