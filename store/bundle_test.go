package store_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// parts is a certificate taken apart, as PEM.
type parts struct{ leaf, intermediate, root, key string }

func newParts(t testing.TB, want storetest.Leaf) parts {
	ca := storetest.NewCA(t, "Test CA")
	chain, key := ca.Issue(want)
	leaf, _ := pem.Decode(chain)
	return parts{
		leaf:         string(pem.EncodeToMemory(leaf)),
		intermediate: string(storetest.PEM(ca.Intermediate)),
		root:         string(storetest.PEM(ca.Root)),
		key:          string(key),
	}
}

func TestParseBundleForms(t *testing.T) {
	p := newParts(t, storetest.Leaf{Domains: []string{"Shop.example.com", "*.shop.example.com"}})
	unrelated := string(storetest.PEM(storetest.NewCA(t, "Other CA").Intermediate))
	want := p.key + p.leaf + p.intermediate
	for name, in := range map[string][]string{
		"canonical":       {want},
		"two texts":       {p.leaf + p.intermediate, p.key},
		"key last":        {p.leaf + p.intermediate + p.key},
		"unordered":       {p.intermediate + p.key + p.leaf},
		"everything once": {want + want, p.key},
		"CRLF":            {strings.ReplaceAll(want, "\n", "\r\n")},
		"CR":              {strings.ReplaceAll(want, "\n", "\r")},
		"blank lines":     {strings.ReplaceAll(want, "\n", "\n\n")},
		"indented":        {"\t" + strings.ReplaceAll(want, "\n", " \n    ")},
		"comments":        {"subject=/CN=shop\n" + p.key + "\nissuer=\n" + p.leaf + "  # up\n" + p.intermediate + "end"},
		"byte order mark": {"\xef\xbb\xbf" + want},
		"no newlines":     {strings.ReplaceAll(want, "-----\n-----BEGIN", "----------BEGIN")},
		"unrelated":       {unrelated + want + unrelated},
		"parameters":      {"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + want},
		"old label":       {strings.ReplaceAll(want, " CERTIFICATE", " X509 CERTIFICATE")},
	} {
		b, err := store.ParseBundle(byteses(in)...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(b.PEM()) != want {
			t.Errorf("%s: not the canonical form", name)
		}
	}
	b, err := store.ParseBundle([]byte(p.root + want))
	if err != nil || string(b.PEM()) != want+p.root {
		t.Errorf("with the root: %v", err)
	}
	leaf, _ := pem.Decode([]byte(p.leaf))
	if fp := fmt.Sprintf("%X", sha1.Sum(leaf.Bytes)); b.Fingerprint != fp {
		t.Errorf("fingerprint %s, want %s", b.Fingerprint, fp)
	}
	if b.Serial != "abd" || b.Issuer != "Test CA intermediate" || strings.Join(b.Domains, " ") != "shop.example.com *.shop.example.com" {
		t.Errorf("serial %s, issuer %s, domains %s", b.Serial, b.Issuer, b.Domains)
	}
}

func byteses(in []string) (out [][]byte) {
	for _, s := range in {
		out = append(out, []byte(s))
	}
	return out
}

func TestParseBundleKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecKey := storetest.NewKey(t)
	sec1, err := x509.MarshalECPrivateKey(ecKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]struct {
		key   crypto.Signer
		block *pem.Block
	}{
		"PKCS#1":   {rsaKey, &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}},
		"SEC 1":    {ecKey, &pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}},
		"wrong":    {ecKey, &pem.Block{Type: "PRIVATE KEY", Bytes: sec1}},
		"Ed25519":  {edKey, nil},
		"PKCS#8":   {rsaKey, nil},
		"PKCS#8 E": {ecKey, nil},
	} {
		p := newParts(t, storetest.Leaf{Key: k.key})
		in := p.key
		if k.block != nil {
			in = string(pem.EncodeToMemory(k.block))
		}
		b, err := store.ParseBundle([]byte(p.leaf), []byte(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if string(b.Key()) != p.key {
			t.Errorf("%s: the key is not PKCS#8", name)
		}
	}
}

func TestParseBundleErrors(t *testing.T) {
	p, other := newParts(t, storetest.Leaf{}), newParts(t, storetest.Leaf{})
	cut := p.leaf[:len(p.leaf)-60]
	encrypted := "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
	legacy := "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
	const encryptedText = "the private key is encrypted with a passphrase; remove it with: openssl pkey -in KEY -out KEY.new"
	for in, want := range map[string]string{
		"":                             "no PEM in it",
		"<html>":                       "no PEM in it",
		p.key:                          "no certificate in it",
		p.leaf:                         "no private key in it",
		p.leaf + p.key + other.key:     "more than one private key in it",
		p.leaf + other.key:             "the private key does not belong to any of the certificates",
		p.key + cut:                    "a PEM block is damaged or cut off",
		p.key + cut + p.intermediate:   "a PEM block is damaged or cut off",
		p.leaf + encrypted:             encryptedText,
		p.leaf + legacy:                encryptedText,
		p.leaf + block("PRIVATE KEY"):  "the private key is damaged",
		p.key + block("CERTIFICATE"):   "certificate 1 of 1 is damaged",
		p.key + block("SECRET SAUCE"):  "a PEM block that is neither certificate nor private key",
		strings.Repeat("a", 256<<10+1): "262145 bytes, the limit is 262144",
		p.leaf + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: make([]byte, 8<<10+1)})): "the private key is over 8192 bytes",
		manyBlocks(33): "more than 32 certificates",
	} {
		_, err := store.ParseBundle([]byte(in))
		if err == nil || err.Error() != "parse certificate: "+want {
			t.Errorf("%.60q: %v, want %s", in, err, want)
		}
	}
}

func block(label string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: []byte("abc")}))
}

func manyBlocks(n int) string {
	var b bytes.Buffer
	for i := range n {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: fmt.Append(nil, i)}))
	}
	return b.String()
}

func TestParseBundlePrefersTheRealLeaf(t *testing.T) {
	ca, key := storetest.NewCA(t, "Test CA"), storetest.NewKey(t)
	placeholder, _ := ca.Issue(storetest.Leaf{Key: key, SelfSigned: true})
	real, k := ca.Issue(storetest.Leaf{Key: key})
	b, err := store.ParseBundle(placeholder, real, k)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Chain(), real) {
		t.Error("the placeholder was taken for the leaf, or stayed in the chain")
	}
}

func TestCertificateBundle(t *testing.T) {
	ca := storetest.NewCA(t, "Test CA")
	r := ca.Certificate("shop", storetest.Leaf{})
	if _, err := r.Bundle(); err != nil {
		t.Fatal(err)
	}
	had := r.Fingerprint
	r.Fingerprint = strings.Repeat("0", 40)
	_, err := r.Bundle()
	want := "issued/shop: parse certificate: its fingerprint is " + had + ", the record says " + r.Fingerprint
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func FuzzParseBundle(f *testing.F) {
	p := newParts(f, storetest.Leaf{})
	for _, s := range []string{p.key + p.leaf + p.intermediate, p.leaf, p.key, "-----BEGIN ", block("CERTIFICATE")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := store.ParseBundle(in)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("a long error: %d bytes", len(err.Error()))
			}
			return
		}
		again, err := store.ParseBundle(b.PEM())
		if err != nil {
			t.Fatalf("the canonical form can't be read: %v", err)
		}
		if !bytes.Equal(again.PEM(), b.PEM()) || bytes.Contains(b.PEM(), []byte("\n\n")) || bytes.Contains(b.PEM(), []byte("\r")) {
			t.Error("the canonical form is not canonical")
		}
	})
}
