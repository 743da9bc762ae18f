package check

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
)

// Dir is a directory of this machine.
type Dir struct {
	Path string // empty: the store is none, but a server
	Err  error  // why it can't be used
	Mode fs.FileMode
	New  bool // it does not exist yet, and can be made
}

// CA is a certificate authority, asked for its directory.
type CA struct {
	Directory string
	Err       error
	Date      time.Time     // its own clock, in the middle of the request; zero when it does not say
	Took      time.Duration // the request
	NeedsEAB  bool
	Profiles  []string // names; none when it has no profiles
}

// Port is an address that the sidecar will listen on, looked at while no sidecar runs.
type Port struct {
	Variable, Address string
	Err               error // why it can't be had
}

// Sidecar is the one on this machine.
type Sidecar struct {
	Control string
	Running bool
	Err     error // it runs, or may run, but does not answer this user
	User    string
	Version string
	Wrong   []string // what it says is wrong with its own work, "name: message"
}

// Handshake is what a TLS client was given for a certificate's name.
type Handshake struct {
	Certificate, Address, Name string
	Err                        error
	Want, Got                  string // fingerprints; Want is empty when nothing is stored yet
}

// authorities looks at the CAs, and at this machine's clock beside theirs.
func (l *look) authorities() {
	const topic = "ca"
	reached := 0
	for _, ca := range l.CAs {
		if ca.Err == nil {
			reached++
		}
	}
	for _, ca := range l.CAs {
		switch {
		case ca.Err != nil && reached > 0:
			l.note(topic, "%s: %v: another CA is used until it answers", ca.Directory, ca.Err)
		case ca.Err != nil:
			l.fail(topic, "%s: %v: let this machine reach it, or correct SPOACME_CA (and SPOACME_CA_ROOTS for a private one)", ca.Directory, ca.Err)
		case ca.NeedsEAB && l.Settings.EAB.KeyID == "" && l.Sidecar.Running:
			l.note(topic, "%s asks for an external account binding: the sidecar needs SPOACME_EAB_KID and SPOACME_EAB_HMAC in its own environment, which this check can't see", ca.Directory)
		case ca.NeedsEAB && l.Settings.EAB.KeyID == "":
			l.fail(topic, "%s asks for an external account binding: set SPOACME_EAB_KID and SPOACME_EAB_HMAC in the sidecar's own environment", ca.Directory)
		default:
			l.ok(topic, "%s answers in %s", ca.Directory, ca.Took.Round(time.Millisecond))
		}
		l.profiles(topic, ca)
	}
	l.clock()
}

// profiles looks whether a CA offers the profiles that certificates ask of it.
func (l *look) profiles(topic string, ca CA) {
	if ca.Err != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(l.Settings.Certificates)) {
		s := l.Settings.Certificates[name]
		its := s.CA == ca.Directory || s.CA == "" && len(l.Settings.CAs) > 0 && l.Settings.CAs[0] == ca.Directory
		if !its || s.Profile == "" || slices.Contains(ca.Profiles, s.Profile) {
			continue
		}
		l.fail(topic, "%s has no profile %s, which certificate %s asks for: %s", ca.Directory, s.Profile, name, offer(ca.Profiles))
	}
}

func offer(profiles []string) string {
	if len(profiles) == 0 {
		return "leave profile= out"
	}
	return "write one of " + strings.Join(profiles, ", ")
}

// Limits of a clock that is off: CAs backdate certificates by an hour, but not all do.
const (
	clockNote = 30 * time.Second
	clockFail = 5 * time.Minute
)

func (l *look) clock() {
	const topic = "clock"
	for _, ca := range l.CAs {
		if ca.Date.IsZero() {
			continue
		}
		off := l.Now.Sub(ca.Date)
		way := "ahead of"
		if off < 0 {
			off, way = -off, "behind"
		}
		text := fmt.Sprintf("this machine is %s %s the CA", off.Round(time.Second), way)
		switch {
		case off > clockFail:
			l.fail(topic, "%s: set its clock (`timedatectl set-ntp true`)", text)
		case off > clockNote:
			l.note(topic, "%s: set its clock (`timedatectl set-ntp true`)", text)
		default:
			l.ok(topic, "agrees with the CA's")
		}
		return
	}
}

// store looks at the directory of the store.
func (l *look) store() {
	const topic = "store"
	d := l.Store
	switch {
	case d.Err != nil:
		l.fail(topic, "%v", d.Err)
	case l.Settings.Store == "":
	case d.Path == "" && l.Sidecar.Running:
		l.ok(topic, "%s, which the sidecar looks after", l.Settings.Store)
	case d.Path == "":
		l.note(topic, "%s is not asked before a sidecar runs: start 'spoacme run' and check again", l.Settings.Store)
	case !d.New && d.Mode.Perm()&0o077 != 0:
		l.fail(topic, "%s has mode %#o, and private keys are in it: chmod 0700 %[1]s", d.Path, d.Mode.Perm())
	case d.New:
		l.ok(topic, "%s will be made", d.Path)
	default:
		l.ok(topic, "%s can be used, and by nobody else", d.Path)
	}
}

// sidecar looks at the running one, or at what another will need.
func (l *look) sidecar() {
	const topic = "sidecar"
	s := l.Sidecar
	switch {
	case s.Err != nil:
		l.fail(topic, "%v", s.Err)
		return
	case !s.Running:
		l.note(topic, "none runs: start 'spoacme run' when all above is right")
		l.ports()
		return
	}
	for _, w := range s.Wrong {
		l.fail(topic, "says of itself: %s", w)
	}
	if len(s.Wrong) == 0 {
		l.ok(topic, "version %s runs as user %s and finds nothing wrong", s.Version, s.User)
	}
}

func (l *look) ports() {
	const topic = "address"
	for _, p := range l.Ports {
		if p.Err != nil {
			l.fail(topic, "%s %s: %v", p.Variable, p.Address, p.Err)
			continue
		}
		l.ok(topic, "%s %s is free", p.Variable, p.Address)
	}
}

// user says whose rights were looked at.
func (l *look) user() {
	switch {
	case l.Sidecar.Running && l.Sidecar.User != l.User:
		l.note("user", "this ran as %s, the sidecar runs as %s: to see what it may read and write, run this as that user", l.User, l.Sidecar.User)
	case !l.Sidecar.Running && l.Root:
		l.note("user", "this ran as root, who may do everything: run it as the sidecar's user")
	}
}

// handshakes compares what clients get with what is stored.
func (l *look) handshakes() {
	const topic = "tls"
	for _, h := range l.Handshakes {
		switch {
		case h.Want == "":
			l.note(topic, "%s: nothing is stored yet, so nothing can be compared: check again when it is issued", h.Certificate)
		case h.Err != nil:
			l.fail(topic, "%s: handshake with %s for %s: %v: see 'spoacme status', and name HAProxy's own TLS address in SPOACME_PROBE", h.Certificate, h.Address, h.Name, h.Err)
		case h.Got != h.Want:
			l.fail(topic, "%s: clients of %s get another certificate (SHA-1 %s) than the one stored (%s): another line may serve %s, see 'spoacme status'", h.Certificate, h.Address, h.Got, h.Want, h.Name)
		default:
			l.ok(topic, "%s: clients that ask %s for %s get what is stored", h.Certificate, h.Address, h.Name)
		}
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
