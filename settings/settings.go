// Package settings holds the words of configuration: which variables there are, what they may say,
// and which source wins. It turns text into Settings and names everything that is wrong with it.
//
// It reads no file, no environment and no socket: the program gathers the sources (flags, its own
// environment, what HAProxy answers to `show env`, the copy of that from the last run) and hands
// them to Load.
package settings

import (
	"log/slog"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spoacme/spoacme/store"
)

// The names of sources. Load treats the environment of HAProxy, which others may read, with more
// care than the sidecar's own.
const (
	FromFlags       = "flag"
	FromEnvironment = "environment"
	FromHAProxy     = "haproxy.cfg (setenv)"
	FromCache       = "cached haproxy.cfg settings"
	FromDefault     = "default"
)

// maxValue is the longest value: HAProxy leaves longer ones out of `show env` without a word.
const maxValue = 16 << 10

// Settings is everything that can be configured. Describe says what each variable means.
//
// A field whose value was refused is empty: it falls back neither to the next source nor to the
// default, because a mistyped CA must not turn into another one.
type Settings struct {
	Socket        string   // path of HAProxy's stats socket; empty: the first of UsualSockets that exists
	Agent         string   // address of the SPOE agent, see Network
	AgentCheck    string   // address of the agent-check server behind the statistics rows
	AgentBackend  string   // HAProxy's backend with the SPOE agent
	RowsBackend   string   // HAProxy's backend with a row per certificate
	Email         string   // contact of the ACME account; may be empty
	CAs           []string // directory URLs; the first that works
	CARoots       string   // PEM file with the roots of a private ACME server's HTTPS; may be empty
	EAB           EAB
	Store         string // URL; StoreDir gives the directory of file:///dir
	Role          string // node, edge or issuer
	FleetKeys     string // file of the keyset of certificates; may be empty
	IssuerKeys    string // file of the keyset of accounts and orders; may be empty
	SealPlain     bool   // private keys are stored as they are
	SealFromPlain bool   // what was stored so is read, and sealed
	CrtList       string // crt-list or certificate directory; empty: the only one that HAProxy has loaded
	CrtDir        string // folder of the PEM files; empty: the folder of CrtList
	HTTP          string // address of /metrics, /healthz, /readyz, /status; see Network; "off" leaves it empty
	Probe         string // HAProxy's own TLS address, host:port; empty: no handshakes
	HTTPFrontend  string // HAProxy's port-80 address, host:port; empty: no probe
	Node          string // name of this node
	State         string // directory of what the sidecar itself keeps
	Control       string // path of the unix socket of the command line
	LogLevel      slog.Level

	Certificates map[string]store.Spec // by name
	// Refused are names of SPOACME_CERTS whose setting was refused. They are still wanted: what is
	// known of them from before stays in force.
	Refused []string

	from map[string]string
}

// EAB is an external account binding (RFC 8555 section 7.3.4). It comes from the sidecar's own environment only.
type EAB struct {
	KeyID string
	HMAC  store.Secret // base64url without padding
}

// From says which source the value of a variable ("SPOACME_CA") came from.
func (s *Settings) From(variable string) string {
	if f, ok := s.from[variable]; ok {
		return f
	}
	return FromDefault
}

// StoreDir is the directory of a file store, empty for any other.
func (s *Settings) StoreDir() string {
	dir, ok := strings.CutPrefix(s.Store, "file://")
	if !ok {
		return ""
	}
	return dir
}

// UsualSockets are the places where a stats socket is looked for when none is named.
func UsualSockets() []string {
	return []string{
		"/run/haproxy/admin.sock",
		"/var/run/haproxy/admin.sock",
		"/run/haproxy.sock",
		"/var/run/haproxy.sock",
		"/var/lib/haproxy/stats",
	}
}

// Source is one place that settings come from.
type Source struct {
	Name   string            // one of the From constants
	Values map[string]string // by variable ("SPOACME_CA"), for flags too; an empty value counts as absent
}

// Ours returns the values that concern spoacme and hold no secret: what may be kept on disk.
func Ours(values map[string]string) map[string]string {
	ours := make(map[string]string)
	for name, value := range values {
		if strings.HasPrefix(name, prefix) && secrecy(name) == public {
			ours[name] = value
		}
	}
	return ours
}

// Level is how bad a Problem is.
type Level int

// The levels of a Problem.
const (
	Note  Level = iota // may be as intended
	Error              // this one thing was left out, the rest stands
	Fatal              // a value on which everything depends was refused: do not start, or go on with the last good settings
)

func (l Level) String() string { return [...]string{"note", "error", "fatal"}[l] }

// Problem is one thing that is wrong with the configuration. No part of it holds a secret.
type Problem struct {
	Variable string // "SPOACME_CA", or "--ca" for a flag
	Source   string
	Message  string // what is wrong and what to do, one line
	Level    Level
	// Stale says how to be rid of a line that is gone from haproxy.cfg and still in force; empty when that can't be.
	Stale string
}

// Error names the variable, where it stands, what is wrong and the remedy, in one line.
func (p Problem) Error() string {
	text := p.Variable + " from " + p.Source + ": " + p.Message
	if p.Source == FromFlags {
		text = p.Variable + ": " + p.Message
	}
	if p.Stale != "" {
		text += " (" + p.Stale + ")"
	}
	return text
}

// Load reads the sources, the first that has a value for a variable wins. What is valid is kept,
// what is not is left out and reported; the problems are in a stable order.
func Load(sources ...Source) (Settings, []Problem) {
	l := &loader{sources: sources, s: Settings{
		Certificates: make(map[string]store.Spec),
		from:         make(map[string]string),
	}}
	for _, v := range table() {
		l.variable(v)
	}
	l.certificates()
	l.strangers()
	l.fillIn()
	return l.s, l.problems
}

type loader struct {
	sources  []Source
	s        Settings
	problems []Problem
}

func (l *loader) problem(level Level, variable, source, message string) {
	if source == FromFlags {
		variable = flagName(variable)
	}
	l.problems = append(l.problems, Problem{Variable: variable, Source: source, Message: message, Level: level})
}

// perhapsStale is problem for a line that may be gone from haproxy.cfg.
func (l *loader) perhapsStale(level Level, variable, source, message string) {
	l.problem(level, variable, source, message)
	l.problems[len(l.problems)-1].Stale = stale(variable, source)
}

// lookup finds the value that wins. allowed leaves out sources that may not set the variable.
func (l *loader) lookup(name string, allowed func(source string) bool) (value, source string) {
	for _, s := range l.sources {
		if v := s.Values[name]; v != "" && allowed(s.Name) {
			return v, s.Name
		}
	}
	return "", ""
}

func anySource(string) bool { return true }

// ownSource leaves out what came from HAProxy.
func ownSource(source string) bool { return source != FromHAProxy && source != FromCache }

func (l *loader) variable(v variable) {
	allowed := anySource
	if v.Own {
		allowed = ownSource
	}
	value, source := l.lookup(v.Name, allowed)
	if value == "" {
		if v.Default != "" && v.set(&l.s, v.Default) != nil {
			panic("settings: bad default of " + v.Name)
		}
		return
	}
	l.s.from[v.Name] = source
	err := hygiene(value)
	if err == nil {
		err = v.set(&l.s, value)
	}
	if err != nil {
		l.problem(Fatal, v.Name, source, err.Error())
	}
}

// fillIn completes what depends on another setting or on the machine.
func (l *loader) fillIn() {
	if l.s.Store == "" && l.s.From("SPOACME_STORE") == FromDefault && l.s.State != "" {
		l.s.Store = "file://" + l.s.State
	}
	if l.s.Node == "" && l.s.From("SPOACME_NODE") == FromDefault {
		if host, err := os.Hostname(); err == nil && store.ValidName(host) == nil {
			l.s.Node = host
		} else {
			l.s.Node = "node"
		}
	}
	l.pair(eabKeyID, eabHMAC)
	l.pair(eabHMAC, eabKeyID)
}

// pair reports a half of two settings that only work together.
func (l *loader) pair(have, lack string) {
	_, a := l.s.from[have]
	_, b := l.s.from[lack]
	if a && !b {
		l.problem(Fatal, have, l.s.From(have), "external account binding needs both: set "+lack+" too, in the sidecar's own environment")
	}
}

// hygiene refuses what no setting may hold. It never quotes the value, which may be a secret.
func hygiene(value string) error {
	switch {
	case len(value) > maxValue:
		return errorf("%d bytes, the limit is %d: HAProxy shows no more; make it shorter", len(value), maxValue)
	case !utf8.ValidString(value):
		return errorf("not UTF-8: write the file as UTF-8, or names as xn--…")
	case strings.ContainsFunc(value, unicode.IsControl):
		return errorf("a line break or another control character: write it in one line")
	}
	return nil
}
