package settings

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/store"
)

// The values of challenge=.
const (
	http01 = "http-01"
	dns01  = "dns-01"
)

func keyTypes() []string { return []string{"ec256", "ec384", "rsa2048", "rsa3072", "rsa4096"} }

var wordPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseSpec reads the words of one certificate: domains and key=word options, separated by commas.
// What is the default (http-01, ec256) is left empty, so that writing it out changes nothing. The
// error joins everything that is wrong; what this version can't do is among it.
func ParseSpec(value string) (store.Spec, error) {
	if strings.TrimSpace(value) == "" {
		return store.Spec{}, errorf("is empty: write the domains, separated by commas")
	}
	if err := hygiene(value); err != nil {
		return store.Spec{}, err
	}
	words, err := split(value)
	if err != nil {
		return store.Spec{}, err
	}
	var spec store.Spec
	var names []string
	var errs []error
	seen := make(map[string]bool)
	for _, w := range words {
		key, val, isOption := strings.Cut(w, "=")
		key, val = strings.TrimSpace(key), strings.TrimSpace(val)
		if !isOption {
			names = append(names, w)
			continue
		}
		if seen[key] {
			errs = append(errs, errorf("%s= stands there twice: keep one", short(key)))
			continue
		}
		seen[key] = true
		if err := setOption(&spec, key, val); err != nil {
			errs = append(errs, err)
		}
	}
	domains, wrong := Domains(names)
	spec.Domains = domains
	errs = append(errs, wrong...)
	if len(names) == 0 {
		errs = append(errs, errorf("names no domain: write at least one"))
	}
	if len(errs) == 0 {
		errs = append(errs, check(spec))
	}
	return spec, errors.Join(errs...)
}

func setOption(spec *store.Spec, key, value string) error {
	switch key {
	case "challenge":
		switch strings.ToLower(value) {
		case http01:
		case dns01:
			spec.Challenge = dns01
		default:
			return errorf("challenge=%s is not a challenge: %s", short(value), nearestOr(value, []string{http01, dns01}))
		}
	case "dns":
		if !wordPattern.MatchString(value) {
			return errorf("dns=%s is not a DNS provider: write its short name, such as dns=route53", short(value))
		}
		spec.DNS = strings.ToLower(value)
	case "profile":
		if !wordPattern.MatchString(value) {
			return errorf("profile=%s is not a profile: write one that the CA offers, such as profile=shortlived", short(value))
		}
		spec.Profile = value
	case "key":
		return setKeyType(spec, strings.ToLower(value))
	case "ca":
		dir, err := directory(value)
		if err != nil {
			return errorf("ca=%w", err)
		}
		spec.CA = dir
	default:
		return errorf("%s= is not an option: %s", short(key), nearestOr(key, []string{"challenge", "dns", "profile", "key", "ca"}))
	}
	return nil
}

func setKeyType(spec *store.Spec, value string) error {
	parts := strings.Split(value, "+")
	families := make(map[string]bool)
	for _, p := range parts {
		if !slices.Contains(keyTypes(), p) {
			return errorf("key=%s is not a key type: %s", short(value), nearestOr(p, keyTypes()))
		}
		families[strings.TrimRight(p, "0123456789")] = true
	}
	if len(families) != len(parts) {
		return errorf("key=%s names two keys of one family: write one of ec… and one of rsa…", short(value))
	}
	if value != "ec256" {
		spec.KeyType = value
	}
	return nil
}

// check looks at what only all words of a certificate tell.
func check(spec store.Spec) error {
	if err := Supported(spec); err != nil {
		return err
	}
	return together(spec)
}

func together(spec store.Spec) error {
	i := slices.IndexFunc(spec.Domains, func(d string) bool { return d[0] == '*' })
	switch {
	case i >= 0 && spec.Challenge != dns01:
		remedy := ": add challenge=dns-01 and dns=PROVIDER"
		if Supported(store.Spec{Challenge: dns01}) != nil {
			remedy = ", which is not in this version: write the names one by one"
		}
		return errorf("%q is a wildcard, and a CA gives those for challenge=dns-01 only%s", short(spec.Domains[i]), remedy)
	case spec.Challenge == dns01 && spec.DNS == "":
		return errorf("challenge=dns-01 needs a DNS provider: add dns=PROVIDER, such as dns=route53")
	case spec.Challenge != dns01 && spec.DNS != "":
		return errorf("dns=%s is for challenge=dns-01 only: add that, or remove dns=", spec.DNS)
	}
	return nil
}

// Supported says what of a valid Spec this version can't do.
func Supported(spec store.Spec) error {
	switch {
	case spec.Challenge == dns01:
		return errorf("challenge=dns-01 is not in this version: use http-01, which needs no option")
	case strings.Contains(spec.KeyType, "+"):
		return errorf("key=%s: two keys for one certificate are not in this version: choose one", spec.KeyType)
	}
	return nil
}
