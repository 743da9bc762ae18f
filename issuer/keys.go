package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spoacme/spoacme/store"
)

// newKey draws a private key of a Spec's KeyType and returns it as PEM (PKCS#8).
func newKey(keyType string) ([]byte, error) {
	var key any
	var err error
	switch keyType {
	case "", "ec256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ec384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa3072":
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case "rsa4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, fmt.Errorf("draw key: type %q: use one of ec256, ec384, rsa2048, rsa3072 and rsa4096", keyType)
	}
	if err != nil {
		return nil, fmt.Errorf("draw key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseKey reads what newKey wrote. Its errors never quote the key.
func parseKey(s store.Secret) (crypto.Signer, error) {
	block, _ := pem.Decode(s.Reveal())
	if block == nil {
		return nil, errors.New("read key: no PEM in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("read key: not PKCS#8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("read key: it can't sign")
	}
	return signer, nil
}

// newCSR makes the request that finalizes an order. It has no common name: the names are the
// alternative names, and CAs that want a common name take the first of them.
func newCSR(key store.Secret, domains []string) ([]byte, error) {
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: domains}, signer)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

// ariID is the name under which the CA tells when to renew the leaf (RFC 9773 section 4.1); empty when the
// leaf does not say who signed it.
func ariID(chain []byte) string {
	block, _ := pem.Decode(chain)
	if block == nil {
		return ""
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(leaf.AuthorityKeyId) == 0 {
		return ""
	}
	serial := leaf.SerialNumber.Bytes()
	if len(serial) == 0 || serial[0]&0x80 != 0 {
		serial = append([]byte{0}, serial...) // as DER writes a positive integer
	}
	enc := base64.RawURLEncoding
	return enc.EncodeToString(leaf.AuthorityKeyId) + "." + enc.EncodeToString(serial)
}
