package store

import (
	"errors"
	"time"
)

// Bundle is a certificate chain with its private key, parsed, ordered and matched: what one PEM
// file of HAProxy holds.
type Bundle struct {
	Fingerprint string // SHA-1 of the leaf, upper-case hex, as `show ssl cert` prints it
	Serial      string // lower-case hex, no leading zeros
	Issuer      string // common name of the leaf's issuer
	Domains     []string
	NotBefore   time.Time
	NotAfter    time.Time

	chain, key []byte
}

// ParseBundle reads PEM in any order and form that is found in the field (CRLF, blank lines,
// comments, unordered chain, key and chain in one text or in two): the leaf is the certificate
// that belongs to the key. Its errors never quote the input.
func ParseBundle(pem ...[]byte) (*Bundle, error) { return nil, errors.New("not written yet") }

// PEM returns the canonical form: key, leaf, chain; no blank line, no comment, LF.
func (b *Bundle) PEM() []byte { return append(append([]byte(nil), b.key...), b.chain...) }

// Chain returns the leaf and the rest of the chain, Key the private key, both as canonical PEM.
func (b *Bundle) Chain() []byte { return b.chain }

// Key returns the private key as canonical PEM.
func (b *Bundle) Key() []byte { return b.key }

// Check says why the bundle can't be served now for the given domains: dates, names, incomplete chain.
func (b *Bundle) Check(now time.Time, domains []string) error { return nil }

// Worse says why b must not replace old, nil when it may: older, shorter-lived, other names, …
func (b *Bundle) Worse(old *Bundle, now time.Time) error { return nil }

// Bundle parses what the record holds.
func (r *Certificate) Bundle() (*Bundle, error) {
	return ParseBundle([]byte(r.Chain), r.Private.Reveal())
}
