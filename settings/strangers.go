package settings

import (
	"maps"
	"slices"
	"strings"
)

// strangers reports names that are no setting, settings that stand where they have no effect, and
// secrets where others can read them.
func (l *loader) strangers() {
	known := make(map[string]variable)
	right := []string{certsName}
	for _, v := range table() {
		known[v.Name] = v
		right = append(right, v.Name)
	}
	for _, s := range l.sources {
		for _, name := range slices.Sorted(maps.Keys(s.Values)) {
			if s.Values[name] != "" {
				l.stranger(name, s.Name, known, right)
			}
		}
	}
}

func (l *loader) stranger(name, source string, known map[string]variable, right []string) {
	if !ownSource(source) {
		switch secrecy(name) {
		case secretOfOurs:
			l.problem(Error, name, source, "is a secret that everybody who reads the stats socket can see: "+
				"move it to the sidecar's own environment, and make a new one")
			return
		case secretOfOthers:
			l.problem(Note, name, source, "looks like a secret, and everybody who reads the stats socket can see it: "+
				"if it is meant for the sidecar, move it to the sidecar's own environment")
			return
		}
	}
	if !strings.HasPrefix(name, prefix) || name == certsName || strings.HasPrefix(name, certPrefix) {
		return
	}
	v, ok := known[name]
	switch {
	case !ok:
		l.perhapsStale(Error, name, source, "is not a setting: "+meant(name, right))
	case v.Own && !ownSource(source):
		place := "in the sidecar's own environment"
		if v.Flag != "" {
			place = "as " + v.Flag + " or " + place
		}
		l.problem(Note, name, source, "has no effect in haproxy.cfg: give it "+place)
	}
}

// meant names the setting that a mistyped one was meant to be.
func meant(name string, right []string) string {
	if n := nearest(name, right, prefix); n != "" {
		return "did you mean " + n + "?"
	}
	return "remove it, or see the list of settings in `spoacme run --help`"
}

// stale says how to get rid of a line that is no longer in haproxy.cfg.
func stale(name, source string) string {
	if ownSource(source) {
		return ""
	}
	return "gone from haproxy.cfg, and still here? HAProxy before 3.2 keeps it over reloads: write unsetenv " + name
}

type secrecyClass int

const (
	public secrecyClass = iota
	secretOfOurs
	secretOfOthers
)

// secrecy tells from a variable's name whether its value is a secret: one that the sidecar or its
// libraries would read, or one that may belong to HAProxy itself.
func secrecy(name string) secrecyClass {
	n := strings.ToUpper(name)
	if strings.HasPrefix(n, certPrefix) || strings.HasSuffix(n, "_FILE") || strings.HasSuffix(n, "_PATH") {
		return public
	}
	if slices.Contains([]string{"CONSUL_HTTP_TOKEN", "CONSUL_HTTP_AUTH", "VAULT_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}, n) {
		return secretOfOurs
	}
	telling := slices.ContainsFunc([]string{
		"_HMAC", "_HMAC_KEY", "_SECRET", "_TOKEN", "_PASSWORD", "_PASSWD", "_API_KEY", "_APIKEY", "_SECRET_KEY", "_SECRET_ACCESS_KEY",
		"_PRIVATE_KEY", "_AUTH_KEY", "_ACCESS_KEY", "_KEYSET", "_CREDENTIALS",
	}, func(suffix string) bool { return strings.HasSuffix(n, suffix) })
	switch {
	case !telling:
		return public
	case strings.HasPrefix(n, prefix), strings.HasPrefix(n, "CONSUL_"), strings.Contains(n, "_DNS_"),
		strings.HasSuffix(n, "_HMAC"), strings.HasSuffix(n, "_API_TOKEN"), strings.HasSuffix(n, "_API_KEY"):
		return secretOfOurs
	}
	return secretOfOthers
}
