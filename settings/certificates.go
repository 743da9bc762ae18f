package settings

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/store"
)

// rowOfOthers is a row of the statistics page, where every certificate has one under its name.
const rowOfOthers = "_others"

// reservedSuffixes are file names that HAProxy reads as parts of another certificate.
func reservedSuffixes() []string {
	return []string{".rsa", ".ecdsa", ".dsa", ".ocsp", ".sctl", ".issuer", ".key"}
}

// CertificateName says why a certificate can't have this name.
func CertificateName(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	if name == rowOfOthers {
		return errorf("name %q is that of the statistics row that counts certificates: choose another name", name)
	}
	if suffix := strings.ToLower(path.Ext(name)); slices.Contains(reservedSuffixes(), suffix) {
		return errorf("name %q: HAProxy takes %s for a part of another certificate: choose another name", name, suffix)
	}
	return nil
}

// validName is store.ValidName with a message that stays short.
func validName(name string) error {
	if len(name) > 64 {
		return errorf("name %q has %d characters, the limit is 64: shorten it", short(name), len(name))
	}
	return store.ValidName(name)
}

// certificates reads SPOACME_CERTS and the setting of each name in it.
func (l *loader) certificates() {
	value, source := l.lookup(certsName, anySource)
	if value == "" {
		l.unlisted(nil)
		return
	}
	l.s.from[certsName] = source
	err := hygiene(value)
	var names []string
	if err == nil {
		names, err = split(value)
	}
	if err != nil {
		l.problem(Fatal, certsName, source, err.Error())
		return
	}
	listed := make(map[string]string) // by lower case: file systems and people don't tell case apart
	for _, name := range names {
		if err := CertificateName(name); err != nil {
			l.problem(Error, certsName, source, err.Error())
			continue
		}
		lower := strings.ToLower(name)
		if other, ok := listed[lower]; ok {
			if other != name {
				l.problem(Error, certsName, source, "names "+other+" and "+name+" differ in case only: rename one")
			}
			continue
		}
		listed[lower] = name
	}
	stray := l.unlisted(listed)
	for _, name := range slices.Sorted(maps.Values(listed)) {
		l.certificate(name, stray)
	}
}

// certificate reads one. stray are the variables that may have been meant for a missing one.
func (l *loader) certificate(name string, stray []string) {
	variable := certPrefix + name
	value, source := l.lookup(variable, anySource)
	if value == "" {
		_, source := l.lookup(certsName, anySource)
		remedy := "write it, or take " + name + " out of " + certsName
		if n := nearest(variable, stray, certPrefix); n != "" {
			remedy = "did you mean " + n + "?"
		}
		l.problem(Error, variable, source, "is not set, though "+certsName+" names it: "+remedy)
		l.s.Refused = append(l.s.Refused, name)
		return
	}
	l.s.from[variable] = source
	spec, err := ParseSpec(value)
	if err == nil {
		l.s.Certificates[name] = spec
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		l.problem(Error, variable, source, line)
	}
	l.s.Refused = append(l.s.Refused, name)
}

// unlisted notes settings of certificates that SPOACME_CERTS does not name, and returns them.
func (l *loader) unlisted(listed map[string]string) (stray []string) {
	for _, variable := range l.names(certPrefix) {
		name := strings.TrimPrefix(variable, certPrefix)
		if listed[strings.ToLower(name)] != name {
			stray = append(stray, variable)
		}
	}
	if listed == nil && len(stray) > 0 {
		_, source := l.lookup(stray[0], anySource)
		l.problem(Error, certsName, source, "is not set, so "+stray[0]+" and the like do not count: name the certificates in it, separated by commas")
		return stray
	}
	for _, variable := range stray {
		_, source := l.lookup(variable, anySource)
		l.perhapsStale(Note, variable, source, "does not count, because "+certsName+" does not name it: add it there, or remove it")
	}
	return stray
}

// names lists all variables with a prefix that have a value, sorted.
func (l *loader) names(prefix string) []string {
	seen := make(map[string]bool)
	for _, s := range l.sources {
		for name, value := range s.Values {
			if value != "" && strings.HasPrefix(name, prefix) {
				seen[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
