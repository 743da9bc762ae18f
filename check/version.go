package check

import (
	"fmt"
	"slices"
)

type version struct {
	major, minor, patch int
	known               bool
}

// parseVersion reads "2.6.12-1+deb12u3".
func parseVersion(s string) version {
	var v version
	n, _ := fmt.Sscanf(s, "%d.%d.%d", &v.major, &v.minor, &v.patch)
	v.known = n >= 2
	return v
}

func (v version) before(major, minor, patch int) bool {
	return slices.Compare([]int{v.major, v.minor, v.patch}, []int{major, minor, patch}) < 0
}

// bug is a version of HAProxy on which spoacme must not run.
type bug struct {
	major, minor, patch int
	what                string
}

// knownBugs are those that HAProxy's own tracker tells, that hit what spoacme makes HAProxy do, and that spoacme does
// not work around. Distributors fix bugs without changing the number, so only unmistakable versions are here.
func knownBugs() []bug {
	return []bug{
		{2, 2, 12, "crashes at its start with a default certificate (haproxy/haproxy#1143): update to 2.2.13 or newer"},
		{2, 9, 6, "can end itself over its SPOE filter (haproxy/haproxy#2490): update to a newer release"},
	}
}

// version looks at HAProxy's version.
func (l *look) version() {
	const topic = "haproxy"
	if l.HAProxy.Version == "" {
		return
	}
	v := parseVersion(l.HAProxy.Version)
	switch i := slices.IndexFunc(knownBugs(), func(b bug) bool { return v == version{b.major, b.minor, b.patch, true} }); {
	case !v.known:
		l.note(topic, "version %q is not understood: 2.2 or newer is needed", l.HAProxy.Version)
	case v.before(2, 2, 0):
		l.fail(topic, "version %s is too old: update to 2.2 or newer", l.HAProxy.Version)
	case i >= 0:
		l.fail(topic, "version %s %s", l.HAProxy.Version, knownBugs()[i].what)
	default:
		l.ok(topic, "version %s, pid %d", l.HAProxy.Version, l.HAProxy.PID)
	}
}
