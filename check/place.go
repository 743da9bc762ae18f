package check

import (
	"maps"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/store"
)

// Place is where certificates go.
type Place struct {
	CrtList, CrtDir string
	Err             error // why it is not known
	Directory       bool  // CrtList is a certificate directory
	ListErr         error // why the crt-list can't be read
	WriteErr        error // why files can't be written there
	Lines           int   // certificates that the crt-list names
	Missing         []string
	Stray           []Stray
	Exposed         []string // PEM files that everybody may read
	Largest         int      // bytes of the largest PEM file
}

// Stray is a file in a certificate directory that HAProxy can't load.
type Stray struct{ Path, Why string }

// crtList looks at the crt-list, or certificate directory, and its folder.
func (l *look) crtList() {
	const topic = "crt-list"
	p := l.Place
	if p.Err != nil {
		if l.HAProxy.Err == nil && l.HAProxy.ListErr == nil {
			l.fail(topic, "%v", p.Err)
		}
		return
	}
	before := len(l.found)
	if p.ListErr != nil {
		l.fail(topic, "%v", p.ListErr)
	}
	if p.WriteErr != nil {
		l.fail(topic, "%v", p.WriteErr)
	}
	for _, s := range p.Stray {
		l.fail(topic, "%s in the certificate directory %s: HAProxy will not start with it: move it away, into a subdirectory if need be", s.Path, s.Why)
	}
	l.several(p.Missing, func(path string) {
		l.fail(topic, "%s names %s, which does not exist: HAProxy will not start: put the file back, or delete the line", p.CrtList, path)
	})
	l.several(p.Exposed, func(path string) {
		l.fail(topic, "everybody can read the private key in %s: chmod o= %[1]s", path)
	})
	if len(l.found) > before {
		return
	}
	if p.Directory {
		l.ok(topic, "certificate directory %s holds %s", p.CrtList, count(p.Lines, "certificate"))
		return
	}
	l.ok(topic, "%s names %s, PEM files go into %s", p.CrtList, count(p.Lines, "certificate"), p.CrtDir)
}

// several limits how often the same thing is said.
func (l *look) several(paths []string, say func(path string)) {
	const most = 5
	for i, path := range paths {
		if i == most {
			l.fail("crt-list", "and %d more of that kind: mend these first and check again", len(paths)-most)
			return
		}
		say(path)
	}
}

// Sizes that a certificate is guessed from: public CAs send a leaf and one or two intermediates.
const (
	chainBytes   = 6 << 10
	rsaExtra     = 3 << 10
	bytesPerName = 1.4 // base64 of a name and its tag
)

// estimate is about what the PEM text of a certificate will have.
func estimate(s store.Spec) int {
	n := chainBytes
	if strings.Contains(s.KeyType, "rsa") {
		n += rsaExtra
	}
	for _, d := range s.Domains {
		n += int(float64(len(d)+4) * bytesPerName)
	}
	return n
}

// buffer looks whether the certificates fit HAProxy's buffer, through which a swap has to go.
func (l *look) buffer() {
	const topic = "buffer"
	size := l.HAProxy.Buffer
	if size == 0 {
		return
	}
	largest, name := l.Place.Largest, "the largest PEM file"
	for _, n := range slices.Sorted(maps.Keys(l.Settings.Certificates)) {
		if e := estimate(l.Settings.Certificates[n]); e > largest {
			largest, name = e, n
		}
	}
	const margin = 1024 // HAProxy keeps some of a buffer free
	if largest > size-margin {
		l.note(topic, "%s has, or may have, %d bytes, and HAProxy takes a command of %d: write `tune.bufsize 32768` in the global section and restart HAProxy", name, largest, size)
		return
	}
	l.ok(topic, "tune.bufsize is %d bytes, enough for these certificates", size)
}
