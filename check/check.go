// Package check turns what was found out about a HAProxy, its files, its sidecar and its certificate authority into
// findings: one line per thing that was looked at, with the remedy for each that is wrong.
//
// It is pure: the program gathers the Facts (over HAProxy's stats socket, from disk, by probes) and prints the
// Findings. Facts that are missing because something could not be asked make a finding of their own, never a false "ok".
package check

import (
	"fmt"
	"strings"
	"time"

	"github.com/spoacme/spoacme/settings"
)

// Level is how a finding is meant.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Note Level = "note" // may be as intended
	Fail Level = "FAIL" // spoacme does not work, or soon will not, until this is changed
)

// Finding is one thing that was looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Topic   string `json:"topic"`   // what was looked at, in a word: "socket", "crt-list"
	Message string `json:"message"` // one line; unless ok it ends with what to do
}

// Facts is all that was found out. A nil pointer, or an empty string, is what could not be, or need not be, found out.
type Facts struct {
	Now      time.Time
	User     string // who runs the check
	Root     bool   // that is root, who may do everything
	Settings settings.Settings
	Problems []settings.Problem
	// FromCache is set when the settings are those of last time, because HAProxy can't be asked.
	FromCache bool
	// FromFiles is set when they are those of the configuration files, for the same reason.
	FromFiles bool

	Config     *Config // haproxy.cfg; nil when none was read
	ConfigErr  error   // why not
	HAProxy    HAProxy
	Place      Place
	Sidecar    Sidecar
	Ports      []Port
	Store      Dir
	CAs        []CA
	Challenge  *Challenge
	Handshakes []Handshake
}

// HAProxy is what the running HAProxy says of itself.
type HAProxy struct {
	Socket  string
	Err     error // why it can't be asked; all below is unknown then
	Version string
	PID     int
	Chroot  string            // of the process; empty when it has none or can't be looked at
	Env     map[string]string // `show env`; nil when it can't be read
	EnvErr  error
	Lists   []List
	ListErr error // why they can't be listed: usually the level of the socket
	Buffer  int   // tune.bufsize in bytes; 0 when it is not known

	Agents    []Server // of the agent's backend
	AgentsErr error    // there is no such backend
	RowsErr   error    // there is no backend for the statistics rows
}

// List is a crt-list or a certificate directory that HAProxy has loaded.
type List struct {
	Path    string
	Entries int
}

// Server is a server as HAProxy sees it.
type Server struct {
	Name, Address string
	Status        string // "UP", "DOWN", "no check", …
	Check         string // what its last health check said
}

// Look returns the findings, in the order in which a person would look.
func Look(f Facts) []Finding {
	l := &look{Facts: f}
	for _, at := range []func(){
		l.config, l.socket, l.version, l.settings, l.stale, l.certificates, l.crtList, l.defaultCertificate,
		l.agent, l.challengeRules, l.challengeProbe, l.handshakes, l.rows, l.buffer, l.authorities, l.store, l.sidecar, l.user,
	} {
		at()
	}
	return l.found
}

// Failed reports whether anything must be changed.
func Failed(found []Finding) bool {
	for _, f := range found {
		if f.Level == Fail {
			return true
		}
	}
	return false
}

type look struct {
	Facts
	found []Finding
}

func (l *look) ok(topic, format string, args ...any)   { l.add(OK, topic, format, args...) }
func (l *look) note(topic, format string, args ...any) { l.add(Note, topic, format, args...) }
func (l *look) fail(topic, format string, args ...any) { l.add(Fail, topic, format, args...) }

func (l *look) add(level Level, topic, format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	l.found = append(l.found, Finding{level, topic, text})
}
