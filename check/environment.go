package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
)

const prefix = "SPOACME_"

// config says which files were read.
func (l *look) config() {
	const topic = "config"
	switch {
	case l.ConfigErr != nil:
		l.fail(topic, "%v", l.ConfigErr)
	case l.Config == nil:
		l.note(topic, "no haproxy.cfg was read, so its frontends and setenv lines were not looked at: name it with -f")
	default:
		l.ok(topic, "read %s", l.files())
		for _, file := range slices.Sorted(maps.Keys(l.Config.Unread)) {
			l.note(topic, "%v: what is in it was not looked at: run this as a user that may read it", l.Config.Unread[file])
		}
	}
}

func (l *look) files() string { return strings.Join(l.Config.Files, ", ") }

func (l *Line) where() string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

// settings says what is wrong with the settings as they are in force.
func (l *look) settings() {
	const topic = "settings"
	if l.HAProxy.EnvErr != nil && l.HAProxy.Err == nil {
		l.fail(topic, "%v", l.HAProxy.EnvErr)
	}
	wrong := 0
	for _, p := range l.Problems {
		if l.Config != nil && l.Config.Env[p.Variable] != nil {
			p.Stale = ""
		}
		if p.Level == settings.Note && l.left(p.Variable) {
			continue // as stale says
		}
		if p.Level == settings.Note {
			l.note(topic, "%v", p)
			continue
		}
		wrong++
		l.fail(topic, "%v", p)
	}
	switch {
	case l.FromFiles:
		l.note(topic, "HAProxy can't be asked, so these are the settings as %s has them: start HAProxy and check again", l.files())
	case l.FromCache:
		l.note(topic, "HAProxy can't be asked, so these are the settings of last time: start HAProxy and check again")
	case wrong == 0 && l.HAProxy.Env != nil:
		n := 0
		for name := range l.HAProxy.Env {
			if strings.HasPrefix(name, prefix) {
				n++
			}
		}
		l.ok(topic, "%d in force in HAProxy, all understood", n)
	}
}

// stale compares what the files set with what is in force.
func (l *look) stale() {
	const topic = "setenv"
	if l.Config == nil {
		return
	}
	before := len(l.found)
	for _, name := range slices.Sorted(maps.Keys(l.Config.Env)) {
		v := l.Config.Env[name]
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if v.Lost {
			l.fail(topic, "%s: %s has several words without quotes, of which HAProxy 2.x keeps the first and 3.x none: write commas without spaces", v.Line.where(), name)
		}
		if l.HAProxy.Env != nil {
			l.compare(topic, name, v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.HAProxy.Env)) {
		switch {
		case !strings.HasPrefix(name, prefix) || !l.left(name):
		case l.idle(name):
			l.note(topic, "%s is in force, but not in %s: it is left over and has no effect: to be rid of it write `unsetenv %s` and reload, or restart HAProxy", name, l.files(), name)
		default:
			l.fail(topic, "%s is in force, but not in %s: it is left over from before a reload, or HAProxy's own start sets it: write `unsetenv %s` and reload, or restart HAProxy", name, l.files(), name)
		}
	}
	if l.HAProxy.Env != nil && len(l.found) == before {
		l.ok(topic, "what %s sets is what is in force", l.files())
	}
}

// left reports a variable that is in force and that the files do not know.
func (l *look) left(name string) bool {
	_, in := l.HAProxy.Env[name]
	return in && l.Config != nil && l.Config.Env[name] == nil
}

// idle reports the setting of a certificate that SPOACME_CERTS does not name.
func (l *look) idle(variable string) bool {
	name, ok := strings.CutPrefix(variable, prefix+"CERT_")
	_, wanted := l.Settings.Certificates[name]
	return ok && !wanted && !slices.Contains(l.Settings.Refused, name)
}

func (l *look) compare(topic, name string, v *Variable) {
	now, set := l.HAProxy.Env[name]
	switch {
	case len(v.Values) == 0:
		if set {
			l.fail(topic, "%s: %s is unset there, but still in force: reload HAProxy", v.Line.where(), name)
		}
	case slices.Contains(v.Values, now) && set, v.Lost, v.Line.Maybe && !set:
	case v.Pre && set:
		l.fail(topic, "%s: presetenv %s does not change what is there (%s): use setenv and reload, or restart HAProxy", v.Line.where(), name, shown(name, now))
	case !set:
		l.fail(topic, "%s: %s is not in force yet: reload HAProxy", v.Line.where(), name)
	default:
		l.fail(topic, "%s: %s is %s there, but %s is in force: reload HAProxy, and see in its log that it took the file", v.Line.where(), name, shown(name, v.Values[0]), shown(name, now))
	}
}

// shown is a value that may be shown: of a secret only that there is one.
func shown(name, value string) string {
	const most = 60
	if len(settings.Ours(map[string]string{name: value})) == 0 {
		return "a secret value"
	}
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "") + "…"
	}
	return fmt.Sprintf("%q", value)
}

// certificates prints every one that was understood.
func (l *look) certificates() {
	const topic = "certificate"
	for _, name := range slices.Sorted(maps.Keys(l.Settings.Certificates)) {
		l.ok(topic, "%s: %s", name, describe(l.Settings.Certificates[name]))
	}
	known := l.HAProxy.Env != nil || l.FromCache || l.FromFiles
	if known && len(l.Settings.Certificates) == 0 && len(l.Settings.Refused) == 0 {
		l.note(topic, "haproxy.cfg asks for none: name them with `setenv SPOACME_CERTS shop` and `setenv SPOACME_CERT_shop shop.example.com`, or use `spoacme issue`")
	}
}

func describe(s store.Spec) string {
	words := []string{strings.Join(s.Domains, ", ")}
	option := func(key, value, usual string) {
		if value == "" {
			value = usual
		}
		if value != "" {
			words = append(words, key+"="+value)
		}
	}
	option("challenge", s.Challenge, "http-01")
	option("dns", s.DNS, "")
	option("key", s.KeyType, "ec256")
	option("profile", s.Profile, "")
	option("ca", s.CA, "")
	return strings.Join(words, " ")
}
