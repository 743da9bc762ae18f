package store

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Limits of what ParseBundle reads. HAProxy's own limit for one file at run time is 16 kB before 3.4.
const (
	maxBundleBytes  = 256 << 10
	maxKeyBytes     = 8 << 10 // RSA-8192 fits
	maxCertificates = 32
)

// Bundle is a certificate chain with its private key, parsed, ordered and matched: what one PEM
// file of HAProxy holds.
type Bundle struct {
	Fingerprint string // SHA-1 of the leaf, upper-case hex, as `show ssl cert` prints it
	Serial      string // lower-case hex, no leading zeros
	Issuer      string // common name of the leaf's issuer; its whole name when there is none
	Domains     []string
	NotBefore   time.Time
	NotAfter    time.Time

	chain, key []byte
	certs      []*x509.Certificate // leaf first
}

// ParseBundle reads PEM in any order and form that is found in the field (CRLF, blank lines,
// comments, unordered chain, key and chain in one text or in two): the leaf is the certificate
// that belongs to the key. Keys may be PKCS#1, SEC 1 or PKCS#8. Certificates that are not on the way
// from the leaf upwards are dropped. Its errors never quote the input.
func ParseBundle(pem ...[]byte) (*Bundle, error) {
	b, err := parseBundle(pem)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return b, nil
}

func parseBundle(texts [][]byte) (*Bundle, error) {
	ders, keyBlock, err := readPEM(texts)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(keyBlock)
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d of %d is damaged", i+1, len(ders))
		}
	}
	leaf := findLeaf(certs, signer.Public())
	if leaf == nil {
		return nil, errors.New("the private key does not belong to any of the certificates")
	}
	b := describe(leaf)
	b.certs = orderChain(leaf, certs)
	for _, c := range b.certs {
		b.chain = append(b.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, errors.New("the private key is of an unknown type")
	}
	b.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return b, nil
}

func describe(leaf *x509.Certificate) *Bundle {
	b := &Bundle{
		Fingerprint: fmt.Sprintf("%X", sha1.Sum(leaf.Raw)),
		Serial:      leaf.SerialNumber.Text(16),
		Issuer:      leaf.Issuer.CommonName,
		NotBefore:   leaf.NotBefore,
		NotAfter:    leaf.NotAfter,
	}
	if b.Issuer == "" {
		b.Issuer = leaf.Issuer.String()
	}
	for _, name := range leaf.DNSNames {
		b.Domains = append(b.Domains, strings.ToLower(name))
	}
	return b
}

// readPEM collects the certificates, each once, and the one private key.
func readPEM(texts [][]byte) (certs [][]byte, key *pem.Block, err error) {
	size := 0
	for _, text := range texts {
		size += len(text)
	}
	if size > maxBundleBytes {
		return nil, nil, fmt.Errorf("%d bytes, the limit is %d", size, maxBundleBytes)
	}
	for _, text := range texts {
		rest := normalize(text)
		begun := bytes.Count(rest, []byte("-----BEGIN "))
		for ; ; begun-- {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if certs, key, err = addBlock(certs, key, block); err != nil {
				return nil, nil, err
			}
		}
		if begun != 0 {
			return nil, nil, errors.New("a PEM block is damaged or cut off")
		}
	}
	switch {
	case len(certs) == 0 && key == nil:
		return nil, nil, errors.New("no PEM in it")
	case len(certs) == 0:
		return nil, nil, errors.New("no certificate in it")
	case key == nil:
		return nil, nil, errors.New("no private key in it")
	}
	return certs, key, nil
}

func addBlock(certs [][]byte, key *pem.Block, block *pem.Block) ([][]byte, *pem.Block, error) {
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE":
		for _, c := range certs {
			if bytes.Equal(c, block.Bytes) {
				return certs, key, nil
			}
		}
		if len(certs) == maxCertificates {
			return nil, nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
		return append(certs, block.Bytes), key, nil
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
		switch {
		case strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, nil, errEncrypted
		case len(block.Bytes) > maxKeyBytes:
			return nil, nil, fmt.Errorf("the private key is over %d bytes", maxKeyBytes)
		case key != nil && !bytes.Equal(key.Bytes, block.Bytes):
			return nil, nil, errors.New("more than one private key in it")
		}
		return certs, block, nil
	case "ENCRYPTED PRIVATE KEY":
		return nil, nil, errEncrypted
	case "EC PARAMETERS", "DH PARAMETERS":
		return certs, key, nil
	}
	return nil, nil, errors.New("a PEM block that is neither certificate nor private key")
}

var errEncrypted = errors.New("the private key is encrypted with a passphrase; remove it with: openssl pkey -in KEY -out KEY.new")

// normalize makes every PEM line stand alone: no byte order mark, CR, indentation, or END and BEGIN
// on one line.
func normalize(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	text = bytes.ReplaceAll(text, []byte("\r"), []byte("\n"))
	text = bytes.ReplaceAll(text, []byte("----------BEGIN "), []byte("-----\n-----BEGIN "))
	lines := bytes.Split(text, []byte("\n"))
	for i, line := range lines {
		lines[i] = bytes.TrimSpace(line)
	}
	return bytes.Join(lines, []byte("\n"))
}

// parseKey goes by the content: tools label keys wrongly.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		switch k := k.(type) {
		case *rsa.PrivateKey:
			return k, nil
		case *ecdsa.PrivateKey:
			return k, nil
		case ed25519.PrivateKey:
			return k, nil
		}
		return nil, errors.New("the private key is of an unknown type")
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	return nil, errors.New("the private key is damaged")
}

// findLeaf returns the certificate for a public key. With several (a placeholder and the real one, an
// old one and its renewal) it is the one that is not self-signed, then the youngest.
func findLeaf(certs []*x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil
	}
	var best *x509.Certificate
	for _, c := range certs {
		if !key.Equal(c.PublicKey) {
			continue
		}
		switch {
		case best == nil,
			selfSigned(best) && !selfSigned(c),
			selfSigned(best) == selfSigned(c) && c.NotBefore.After(best.NotBefore):
			best = c
		}
	}
	return best
}

// orderChain follows the signatures upwards from the leaf. Of two certificates of one signer (a
// cross-signed root and the root) the one that leads further comes first.
func orderChain(leaf *x509.Certificate, certs []*x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{leaf}
	used := map[*x509.Certificate]bool{leaf: true}
	for c := leaf; !selfSigned(c); {
		var next *x509.Certificate
		for _, up := range certs {
			if used[up] || c.CheckSignatureFrom(up) != nil {
				continue
			}
			if next == nil || selfSigned(next) && !selfSigned(up) {
				next = up
			}
		}
		if next == nil {
			break
		}
		used[next] = true
		chain = append(chain, next)
		c = next
	}
	return chain
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) &&
		c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// PEM returns the canonical form: key, leaf, chain; no blank line, no comment, LF.
func (b *Bundle) PEM() []byte { return append(append([]byte(nil), b.key...), b.chain...) }

// Chain returns the leaf and the rest of the chain as canonical PEM.
func (b *Bundle) Chain() []byte { return bytes.Clone(b.chain) }

// Key returns the private key as canonical PEM (PKCS#8).
func (b *Bundle) Key() []byte { return bytes.Clone(b.key) }

// Bundle parses what the record holds.
func (r *Certificate) Bundle() (*Bundle, error) {
	b, err := ParseBundle([]byte(r.Chain), r.Private.Reveal())
	if err == nil && r.Fingerprint != "" && b.Fingerprint != r.Fingerprint {
		err = fmt.Errorf("parse certificate: its fingerprint is %s, the record says %s", b.Fingerprint, r.Fingerprint)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Key(), err)
	}
	return b, nil
}
