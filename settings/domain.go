package settings

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Limits of names (RFC 1035 section 2.3.4) and of a certificate (what public CAs accept).
const (
	maxLabel   = 63
	maxDomain  = 253
	maxDomains = 100
)

// Domain normalises one name of a certificate: lower case, A-labels, no final dot. A wildcard may
// stand as the first label. Its errors quote the name and say what to write instead.
func Domain(name string) (string, error) {
	if err := notDomain(name); err != nil {
		return "", err
	}
	host, wild := strings.CutPrefix(name, "*.")
	switch {
	case strings.HasPrefix(host, "*."), wild && strings.Contains(host, "*"):
		return "", errorf("%q has two wildcards: only one is possible, as the first label", short(name))
	case strings.Contains(host, "*"):
		return "", errorf("%q: a wildcard is a whole label, the first one: write *.%s", short(name), short(afterWildcard(host)))
	}
	ascii, err := toASCII(strings.TrimSuffix(host, "."))
	if err != nil {
		return "", errorf("%q is not a valid international name: check its spelling", short(name))
	}
	if wild {
		ascii = "*." + ascii
	}
	if err := checkLabels(name, ascii, wild); err != nil {
		return "", err
	}
	return ascii, nil
}

// notDomain recognises what people write where a name belongs.
func notDomain(name string) error {
	if name == "" {
		return errorf("a name is empty: remove it")
	}
	bare := strings.Trim(name, "[]")
	if _, rest, ok := strings.Cut(name, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		return errorf("%q is a URL: write the name alone: %s", short(name), short(withoutPort(host)))
	}
	if _, err := netip.ParseAddr(bare); err == nil {
		return errorf("%q is an IP address: certificates are for names", short(name))
	}
	if host := withoutPort(name); host != name {
		return errorf("%q has a port: write the name alone: %s", short(name), short(host))
	}
	if i := strings.IndexAny(name, " \t/\\\"'$@:;,(){}<>|"); i >= 0 {
		return errorf("%q: the character %q is not possible in a name: separate names by commas only", short(name), name[i:i+1])
	}
	if strings.Contains(name, "_") {
		return errorf("%q: an underscore is not possible in the name of a certificate: remove the name", short(name))
	}
	return nil
}

func withoutPort(host string) string {
	h, port, ok := strings.Cut(host, ":")
	if _, err := strconv.ParseUint(port, 10, 32); ok && err == nil {
		return h
	}
	return host
}

// afterWildcard is the part of *foo.x or foo.*.x below its wildcard.
func afterWildcard(host string) string {
	_, rest, _ := strings.Cut(host[strings.LastIndex(host, "*"):], ".")
	if rest == "" {
		return "example.com"
	}
	return rest
}

func toASCII(host string) (string, error) {
	lower := strings.ToLower(host)
	if isASCII(lower) && !strings.HasPrefix(lower, "xn--") && !strings.Contains(lower, ".xn--") {
		return lower, nil
	}
	ascii, err := idna.Lookup.ToASCII(host)
	if err != nil {
		return "", err
	}
	// A name that a reader would refuse in its A-label form is no name, although it could be mapped.
	if again, err := idna.Lookup.ToASCII(ascii); err != nil || again != ascii || !isASCII(ascii) {
		return "", errorf("not a name in its own A-label form")
	}
	return ascii, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// checkLabels checks lengths and characters of the normalised name; messages quote it as written.
func checkLabels(written, ascii string, wild bool) error {
	if len(ascii) > maxDomain {
		return errorf("%q has %d characters, the limit is %d: shorten it", short(written), len(ascii), maxDomain)
	}
	labels := strings.Split(ascii, ".")
	if wild {
		labels = labels[1:]
	}
	for _, label := range labels {
		switch {
		case label == "":
			return errorf("%q has an empty label: remove the dot too many", short(written))
		case len(label) > maxLabel:
			return errorf("%q has a label of %d characters, the limit is %d: shorten it", short(written), len(label), maxLabel)
		case label[0] == '-' || label[len(label)-1] == '-':
			return errorf("%q: a label can't begin or end with a hyphen: remove it", short(written))
		}
		for i := range len(label) {
			if c := label[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return errorf("%q: the character %q is not possible in a name: remove it", short(written), string(c))
			}
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return errorf("%q ends with a number, as no name does: write the whole name", short(written))
	}
	return nil
}

// Domains normalises the names of one certificate and drops what stands there twice. It reports
// every name that is wrong.
func Domains(names []string) ([]string, []error) {
	var domains []string
	var errs []error
	seen := make(map[string]bool)
	for _, n := range names {
		d, err := Domain(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !seen[d] {
			seen[d] = true
			domains = append(domains, d)
		}
	}
	for _, d := range domains {
		if _, parent, ok := strings.Cut(d, "."); ok && d[0] != '*' && seen["*."+parent] {
			errs = append(errs, errorf("%q is covered by *.%s, and CAs refuse both in one certificate: remove it", short(d), short(parent)))
		}
	}
	if len(domains) > maxDomains {
		errs = append(errs, errorf("%d names, a certificate holds %d: split it in two", len(domains), maxDomains))
	}
	return domains, errs
}
