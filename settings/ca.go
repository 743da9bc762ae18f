package settings

import (
	"net/url"
	"strings"
)

type namedCA struct{ name, directory string }

func knownCAs() []namedCA {
	return []namedCA{
		{"letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"},
		{"letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"},
		{"zerossl", "https://acme.zerossl.com/v2/DV90"},
		{"google", "https://dv.acme-v02.api.pki.goog/directory"},
		{"google-staging", "https://dv.acme-v02.test-api.pki.goog/directory"},
		{"sslcom", "https://acme.ssl.com/sslcom-dv-ecc"},
		{"actalis", "https://acme-api.actalis.com/acme/directory"},
	}
}

func caNames() []string {
	var names []string
	for _, ca := range knownCAs() {
		names = append(names, ca.name)
	}
	return names
}

// directory turns a short name or a URL into the URL of an ACME directory (RFC 8555 section 7.1.1).
func directory(value string) (string, error) {
	for _, ca := range knownCAs() {
		if strings.EqualFold(value, ca.name) {
			return ca.directory, nil
		}
	}
	if !strings.Contains(value, ":") {
		return "", errorf("%q is not the short name of a CA: %s (or a directory URL)", short(value), nearestOr(value, caNames()))
	}
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return "", errorf("%q is not a directory URL: write https://HOST/PATH", short(value))
	case u.Scheme != "https":
		return "", errorf("%q: ACME goes over https only: write https://%s", short(value), short(u.Host+u.Path))
	case u.User != nil || u.Fragment != "":
		return "", errorf("the directory URL has a user or a fragment: write https://HOST/PATH")
	}
	u.Host = strings.ToLower(u.Host)
	return u.String(), nil
}

func setCAs(s *Settings, value string) error {
	words, err := split(value)
	if err != nil {
		return err
	}
	var cas []string
	seen := make(map[string]bool)
	for _, w := range words {
		dir, err := directory(w)
		if err != nil {
			return err
		}
		if !seen[dir] {
			seen[dir] = true
			cas = append(cas, dir)
		}
	}
	s.CAs = cas
	return nil
}
