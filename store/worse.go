package store

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// clockSkew is by how much a CA's clock may be ahead of ours.
	clockSkew = time.Minute
	// dateBlur is by how much dates of two CAs can't be compared: some date back by an hour, some to midnight.
	dateBlur = 24 * time.Hour
)

// Check says why the bundle can't be served now for the given domains; nil when it can. It looks at the leaf's
// dates and purpose, at its names (every domain must be covered), and at the chain: the leaf's issuer must be there and
// in date. A self-signed leaf is a placeholder. With no domains, names are not looked at.
func (b *Bundle) Check(now time.Time, domains []string) error {
	if err := b.checkLeaf(now); err != nil {
		return fmt.Errorf("check certificate: %w", err)
	}
	var missing []string
	for _, d := range domains {
		if !b.covers(d) {
			missing = append(missing, d)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("check certificate: it does not hold %s", strings.Join(missing, ", "))
	}
	return nil
}

func (b *Bundle) checkLeaf(now time.Time) error {
	leaf := b.certs[0]
	switch {
	case selfSigned(leaf):
		return errors.New("it is self-signed: a placeholder")
	case now.Add(clockSkew).Before(b.NotBefore):
		return fmt.Errorf("it is not valid before %s", date(b.NotBefore))
	case !now.Before(b.NotAfter):
		return fmt.Errorf("it expired at %s", date(b.NotAfter))
	case !forServers(leaf):
		return errors.New("it is not for TLS servers")
	case len(b.certs) == 1:
		return errors.New("the chain is incomplete: the issuer's certificate is missing")
	case !now.Before(b.certs[1].NotAfter):
		return fmt.Errorf("its issuer's certificate expired at %s", date(b.certs[1].NotAfter))
	}
	return nil
}

func forServers(leaf *x509.Certificate) bool {
	return len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// covers reports whether the leaf is good for a domain; a wildcard domain needs the same wildcard.
func (b *Bundle) covers(domain string) bool {
	domain = strings.ToLower(domain)
	if slices.Contains(b.Domains, domain) {
		return true
	}
	label, parent, _ := strings.Cut(domain, ".")
	return label != "*" && parent != "" && slices.Contains(b.Domains, "*."+parent)
}

// Worse says why b must not replace old (which may be nil), nil when it may. It is the last guard before a certificate
// is stored or served, and knows no wishes: whether b's names are those that are wanted is Check's question,
// and has to be asked first.
//
//   - What can't be served now, by Check, replaces nothing.
//   - What can be served replaces what can't.
//   - Of two that can be served, the one issued later wins, whatever its names and lifetime: names, profile and CA change
//     only by a decision, and a decision leads to a new certificate. So going back to an earlier certificate (a restored
//     store, a stale file) is refused until the later one has expired.
//   - Issued later means a later notBefore; when these are equal, no earlier notAfter. The dates of two CAs are comparable
//     only roughly. There b may look up to a day earlier, if it covers all names of old.
func (b *Bundle) Worse(old *Bundle, now time.Time) error {
	if err := b.checkLeaf(now); err != nil && old == nil {
		return fmt.Errorf("the certificate can't be served: %w", err)
	} else if err != nil {
		return fmt.Errorf("keep the old certificate: the new one is worse: %w", err)
	}
	if old == nil || old.Fingerprint == b.Fingerprint || old.checkLeaf(now) != nil {
		return nil
	}
	if !b.older(old) {
		return nil
	}
	return fmt.Errorf("keep the old certificate: the other one is older: valid %s to %s, the old one %s to %s",
		date(b.NotBefore), date(b.NotAfter), date(old.NotBefore), date(old.NotAfter))
}

// older reports whether b was issued before old.
func (b *Bundle) older(old *Bundle) bool {
	if b.NotBefore.Equal(old.NotBefore) {
		return b.NotAfter.Before(old.NotAfter)
	}
	if b.NotBefore.After(old.NotBefore) {
		return false
	}
	if sameCA(b.certs[0], old.certs[0]) || slices.ContainsFunc(old.Domains, func(d string) bool { return !b.covers(d) }) {
		return true
	}
	return old.NotBefore.Sub(b.NotBefore) > dateBlur || old.NotAfter.Sub(b.NotAfter) > dateBlur
}

// sameCA goes by the organization: a CA changes its intermediates often.
func sameCA(a, b *x509.Certificate) bool {
	if len(a.Issuer.Organization) > 0 && len(b.Issuer.Organization) > 0 {
		return slices.Equal(a.Issuer.Organization, b.Issuer.Organization)
	}
	return bytes.Equal(a.RawIssuer, b.RawIssuer)
}

// SameIssuer reports whether two certificates are of one CA, as far as they tell.
func (b *Bundle) SameIssuer(o *Bundle) bool { return sameCA(b.certs[0], o.certs[0]) }

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
