package check

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// filter is a `filter spoe` line.
type filter struct{ engine, file string }

func parseFilter(l Line) filter {
	var f filter
	if len(l.Words) < 3 || l.Words[0] != "filter" || l.Words[1] != "spoe" {
		return f
	}
	for i := 2; i+1 < len(l.Words); i += 2 {
		switch l.Words[i] {
		case "engine":
			f.engine = l.Words[i+1]
		case "config":
			f.file = l.Words[i+1]
		}
	}
	return f
}

// challengeRules looks whether the frontends of port 80 hand challenges to the sidecar, and before anything else.
func (l *look) challengeRules() {
	const topic = "frontend"
	if l.Config == nil {
		return
	}
	port := 80
	if _, p, err := net.SplitHostPort(l.Settings.HTTPFrontend); err == nil {
		port, _ = strconv.Atoi(p)
	}
	none := true
	for _, p := range l.Config.frontends() {
		if p.listensOn(port) {
			none = false
			l.frontend(topic, p)
		}
	}
	if !none {
		return
	}
	for _, p := range l.Config.frontends() {
		if slices.ContainsFunc(p.Lines, l.ours) {
			none = false
			l.frontend(topic, p)
			l.note(topic, "%s: no frontend of %s listens on port %d, where the CA asks: all is well only if something brings port 80 to %s; name its address in SPOACME_HTTP_FRONTEND then", p.name(), l.files(), port, p.name())
		}
	}
	if none {
		l.fail(topic, "no frontend of %s listens on port %d, where the CA asks: write one as in snippet.cfg, with `bind :80`", l.files(), port)
	}
}

// ours reports whether a line is the filter that leads to the sidecar.
func (l *look) ours(line Line) bool {
	f := parseFilter(line)
	if f.file == "" {
		return false
	}
	agent := l.engine(f)
	return agent == nil || agent.backend == "" || agent.backend == l.Settings.AgentBackend
}

// engine is what a SPOE file says of one engine.
type engine struct {
	backend string
	prefix  string
	events  bool // messages are sent by themselves, without a rule
}

// engine is nil when the file can't be read or has no such engine.
func (l *look) engine(f filter) *engine {
	c := l.Config.SPOE[f.file]
	if c == nil {
		return nil
	}
	var e *engine
	for _, s := range c.Sections {
		if s.Scope != f.engine {
			continue
		}
		if e == nil {
			e = new(engine)
		}
		switch s.Words[0] {
		case "spoe-agent":
			for _, v := range s.values("use-backend") {
				e.backend = strings.Join(v, " ")
			}
			e.prefix = s.name()
			for _, v := range s.values("option", "var-prefix") {
				e.prefix = strings.Join(v, " ")
			}
		case "spoe-message":
			e.events = e.events || len(s.values("event")) > 0
		}
	}
	return e
}

// frontend looks at one that takes the CA's questions.
func (l *look) frontend(topic string, p proxy) {
	name := p.name()
	at := slices.IndexFunc(p.Lines, l.ours)
	switch {
	case p.mode != "http":
		l.fail(topic, "%s is in mode %s: challenges are answered in mode http only: write `mode http` and reload HAProxy", name, p.mode)
		return
	case at < 0:
		l.fail(topic, "%s has no `filter spoe` line for backend %s: copy the challenge lines of snippet.cfg to the top of it and reload HAProxy", name, l.Settings.AgentBackend)
		return
	}
	f := parseFilter(p.Lines[at])
	e := l.engine(f)
	if e == nil && l.Config.SPOE[f.file] != nil {
		l.fail(topic, "%s: %s has no section [%s]: copy spoe-acme.conf there and reload HAProxy", name, f.file, f.engine)
		return
	}
	if e == nil {
		e = &engine{prefix: "acme"}
	}
	l.rules(topic, p, f, e)
}

// rules looks at the order of http-request rules: the first that ends a request wins.
func (l *look) rules(topic string, p proxy, f filter, e *engine) {
	variable := "txn." + e.prefix + ".keyauth"
	sent, answered := e.events, false
	var above, early []Line
	for _, line := range p.rules {
		w := line.Words
		switch {
		case sent && answered:
		case w[0] != "http-request":
			above = append(above, line)
		case w[1] == "send-spoe-group" && len(w) > 2 && w[2] == f.engine:
			sent = true
		case w[1] == "return" && strings.Contains(strings.Join(w, " "), variable):
			answered = true
		default:
			early = append(early, line)
		}
	}
	before := len(l.found)
	switch {
	case !sent:
		l.fail(topic, "%s: no rule `http-request send-spoe-group %s challenge if acme_path`, so the sidecar is never asked: copy the challenge lines of snippet.cfg and reload HAProxy", p.name(), f.engine)
		return
	case !answered:
		l.fail(topic, "%s: no rule `http-request return` with %s, so what the sidecar says is never sent: copy the challenge lines of snippet.cfg and reload HAProxy", p.name(), variable)
		return
	}
	for _, line := range early {
		l.blocker(topic, p, line)
	}
	switch {
	case len(l.found) > before:
	case len(above) > 0:
		l.note(topic, "%s: `%s` (%s) stands above the challenge rules: HAProxy runs those first all the same, and warns at every start: move them up", p.name(), above[0].Words[0], above[0].where())
	default:
		l.ok(topic, "%s: challenges are answered before every other rule", p.name())
	}
}

// blocker reports a rule above the challenge rules that would end a challenge.
func (l *look) blocker(topic string, p proxy, line Line) {
	action := line.Words[1]
	if !slices.Contains([]string{"redirect", "return", "deny", "reject", "silent-drop", "tarpit", "auth", "use-service", "allow"}, action) {
		return
	}
	i := slices.IndexFunc(line.Words, func(w string) bool { return w == "if" || w == "unless" })
	var condition []string
	if i >= 0 {
		condition = line.Words[i:]
	}
	switch catches(p, condition) {
	case always:
		l.fail(topic, "%s: `http-request %s` (%s) stands above the challenge rules, so challenges never reach the sidecar: move the challenge rules above it and reload HAProxy", p.name(), action, line.where())
	case perhaps:
		l.note(topic, "%s: `http-request %s` (%s) stands above the challenge rules: if its condition can hold for a challenge, move the challenge rules above it", p.name(), action, line.where())
	}
}

type certainty int

const (
	never certainty = iota
	perhaps
	always
)

// catches guesses whether a condition holds for a challenge over plain HTTP. It knows the ways in which people leave
// challenges alone and those in which they send everything to https; of the rest it says perhaps.
func catches(p proxy, condition []string) certainty {
	if len(condition) == 0 {
		return always
	}
	text := strings.Join(condition[1:], " ")
	negated := condition[0] == "unless"
	for _, term := range []string{"{ ssl_fc }", "{ ssl_fc 1 }"} {
		if text == "!"+term && !negated || text == term && negated {
			return always
		}
		if text == term && !negated {
			return never
		}
	}
	if about := mention(p, condition[1:], "/.well-known"); about != "" && (about[0] == '!') != negated {
		return never
	}
	// The rules that end a challenge of ours may stand anywhere.
	if mention(p, condition[1:], "nbsrv(") != "" || mention(p, condition[1:], "var(txn.") != "" {
		return never
	}
	return perhaps
}

// mention returns the word of a condition that has the text, by itself or through an acl, with its "!".
func mention(p proxy, condition []string, text string) string {
	acls := map[string]bool{}
	for _, line := range p.Lines {
		if line.Words[0] == "acl" && len(line.Words) > 1 && strings.Contains(strings.Join(line.Words[2:], " "), text) {
			acls[line.Words[1]] = true
		}
	}
	negation := ""
	for _, w := range condition {
		switch {
		case w == "!{":
			negation = "!"
		case w == "{":
			negation = ""
		case acls[strings.TrimPrefix(w, "!")]:
			return w
		case strings.Contains(w, text):
			return negation + w
		}
	}
	return ""
}

// Challenge is what became of a request for a challenge through HAProxy's own HTTP frontend.
type Challenge struct {
	Address  string // of the frontend
	Expected string // the key authorization that a running sidecar published for it; empty without one
	Err      error  // no answer
	Status   int
	Body     string // its beginning
	Location string
}

// challengeProbe judges the answer.
func (l *look) challengeProbe() {
	const topic = "challenge"
	c := l.Challenge
	if c == nil {
		if l.HAProxy.Err == nil {
			l.note(topic, "no challenge was sent through HAProxy, because the address of its port 80 is not known: give it with --http-frontend 127.0.0.1:80")
		}
		return
	}
	where := "sent one through " + c.Address
	said := fmt.Sprintf("%d", c.Status)
	if c.Location != "" {
		said += " to " + c.Location
	}
	switch {
	case c.Err != nil:
		l.fail(topic, "%s: %v: start HAProxy, or correct SPOACME_HTTP_FRONTEND", where, c.Err)
	case c.Expected != "" && c.Status == 200 && c.Body == c.Expected:
		l.ok(topic, "%s, and the sidecar's answer came back", where)
	case c.Status == 503 && (c.Body == "agent down" || c.Body == "agent failed"):
		l.unreached(topic, where, c)
	case c.Expected != "":
		l.fail(topic, "%s: HAProxy answered %s, not what the sidecar says: put the challenge lines of snippet.cfg at the top of this frontend and reload HAProxy", where, said)
	case c.Status == 404 && c.Body == "unknown token":
		l.ok(topic, "%s: the challenge rules and the sidecar were reached", where)
	default:
		l.note(topic, "%s for an unknown token: HAProxy answered %s, as the site's own rules may: start 'spoacme run' and check again to see a real answer", where, said)
	}
}

// unreached is when HAProxy does not get through to the sidecar; that is as it should be when there is none.
func (l *look) unreached(topic, where string, c *Challenge) {
	if c.Expected == "" && !l.Sidecar.Running {
		l.ok(topic, "%s: the challenge rules were reached (no sidecar runs)", where)
		return
	}
	l.fail(topic, "%s: HAProxy says %q: make the server line of backend %s lead to the sidecar at %s", where, c.Body, l.Settings.AgentBackend, l.Settings.Agent)
}
