package store

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxDomains is the CAs' limit for one certificate.
const maxDomains = 100

// maxText is how long a free text in a record may be: an error, a URL, an address.
const maxText = 8 << 10

var (
	labelPattern       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	wordPattern        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	keyTypePattern     = regexp.MustCompile(`^(ec256|ec384|rsa2048|rsa3072|rsa4096)(\+(ec256|ec384|rsa2048|rsa3072|rsa4096))?$`)
	thumbprintPattern  = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)
	serialPattern      = regexp.MustCompile(`^(0|[1-9a-f][0-9a-f]{0,63})$`)
	fingerprintPattern = regexp.MustCompile(`^[0-9A-F]{40}$`)
)

// ValidDomain reports what is wrong with a domain of a certificate: lower case, A-labels, no final dot,
// the wildcard only as the whole first label.
func ValidDomain(d string) error {
	switch {
	case d == "":
		return errors.New("domain is empty")
	case len(d) > 253:
		return fmt.Errorf("domain %.40q…: %d characters, the limit is 253", d, len(d))
	}
	labels := strings.Split(d, ".")
	if labels[0] == "*" {
		if labels = labels[1:]; len(labels) == 0 {
			return errors.New(`domain "*": a wildcard needs a domain, as in *.example.com`)
		}
	}
	for _, l := range labels {
		if !labelPattern.MatchString(l) {
			return fmt.Errorf("domain %q: %s", d, labelFault(l))
		}
	}
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return fmt.Errorf("domain %q: an IP address is not a domain", d)
	}
	return nil
}

func labelFault(l string) string {
	switch {
	case l == "":
		return "two dots in a row, or a dot at an end"
	case len(l) > 63:
		return fmt.Sprintf("a part of %d characters, the limit is 63", len(l))
	case strings.Contains(l, "*"):
		return "'*' can only be the whole first part"
	case strings.ToLower(l) != l:
		return "use lower case"
	case strings.Trim(l, "-") != l:
		return "a part can't begin or end with '-'"
	}
	return "use only letters, digits, '-' and '.'; write international names as xn--…"
}

// Validate says what is wrong with the wishes for a certificate.
func (s Spec) Validate() error {
	if err := validDomains(s.Domains); err != nil {
		return err
	}
	switch s.Challenge {
	case "", "http-01":
		if i := slices.IndexFunc(s.Domains, func(d string) bool { return d[0] == '*' }); i >= 0 {
			return fmt.Errorf("domain %q: a wildcard needs challenge=dns-01", s.Domains[i])
		}
		if s.DNS != "" {
			return fmt.Errorf("dns=%.64s is only for challenge=dns-01", s.DNS)
		}
	case "dns-01":
		if !wordPattern.MatchString(s.DNS) {
			return errors.New("challenge=dns-01 needs the name of a DNS provider, as in dns=route53")
		}
	default:
		return fmt.Errorf("challenge %.64q: use http-01 or dns-01", s.Challenge)
	}
	switch {
	case s.Profile != "" && !wordPattern.MatchString(s.Profile):
		return fmt.Errorf("profile %.64q: use letters, digits, '.', '_' and '-'", s.Profile)
	case s.KeyType != "" && !validKeyType(s.KeyType):
		return fmt.Errorf("key %.64q: use ec256, ec384, rsa2048, rsa3072, rsa4096, or one of each as in ec256+rsa2048", s.KeyType)
	case s.CA != "":
		return validURL("ca", s.CA)
	}
	return nil
}

func validKeyType(t string) bool {
	a, b, two := strings.Cut(t, "+")
	return keyTypePattern.MatchString(t) && (!two || a[0] != b[0])
}

func validDomains(domains []string) error {
	switch {
	case len(domains) == 0:
		return errors.New("no domain")
	case len(domains) > maxDomains:
		return fmt.Errorf("%d domains, the limit is %d", len(domains), maxDomains)
	}
	seen := make(map[string]bool, len(domains))
	for _, d := range domains {
		if err := ValidDomain(d); err != nil {
			return err
		}
		if seen[d] {
			return fmt.Errorf("domain %q is there twice", d)
		}
		seen[d] = true
	}
	return nil
}

// validURL demands what RFC 8555 section 6.1 does: https, but for a server on this machine.
func validURL(field, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s: %d characters, the limit is %d", field, len(s), maxText)
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		if strings.Contains(s, "@") { // perhaps a password
			s = "…"
		}
		return fmt.Errorf("%s %.100q: use a URL that begins with https://", field, s)
	}
	return nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func optionalURL(field, s string) error {
	if s == "" {
		return nil
	}
	return validURL(field, s)
}

func validText(field, s string) error {
	switch {
	case len(s) > maxText:
		return fmt.Errorf("%s: %d characters, the limit is %d", field, len(s), maxText)
	case holdsKey(s):
		return fmt.Errorf("%s holds a private key", field)
	}
	return nil
}

// holdsKey finds what must never be in a field that is not sealed.
func holdsKey(s string) bool { return strings.Contains(s, "PRIVATE KEY-----") }

// validTime refuses what no clock of a fleet shows.
func validTime(field string, t time.Time) error {
	switch {
	case t.IsZero():
		return fmt.Errorf("%s is missing", field)
	case t.Year() < 2000 || t.Year() > 2999:
		return fmt.Errorf("%s is in the year %d", field, t.Year())
	}
	return nil
}

func optionalTime(field string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return validTime(field, t)
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
