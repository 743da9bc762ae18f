package check

import (
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// bind is one bind line.
type bind struct {
	line      Line
	addresses []string
	words     []string // behind the addresses
}

// proxy is a frontend, or a listen section, of the files.
type proxy struct {
	Section
	mode  string
	rules []Line // http-request rules, redirect and use_backend lines in their order, those of its defaults first
	binds []bind
}

func (c *Config) frontends() []proxy {
	var all []proxy
	for i, s := range c.Sections {
		if s.Words[0] != "frontend" && s.Words[0] != "listen" {
			continue
		}
		p := proxy{Section: s, mode: c.mode(i)}
		if d := c.defaults(i); d != nil {
			p.rules = rulesOf(d.Lines)
		}
		p.rules = append(p.rules, rulesOf(s.Lines)...)
		for _, l := range s.Lines {
			if l.Words[0] == "bind" && len(l.Words) > 1 {
				p.binds = append(p.binds, bind{l, strings.Split(l.Words[1], ","), l.Words[2:]})
			}
		}
		all = append(all, p)
	}
	return all
}

func rulesOf(lines []Line) (rules []Line) {
	for _, l := range lines {
		switch l.Words[0] {
		case "redirect", "use_backend":
			rules = append(rules, l)
		case "http-request":
			if len(l.Words) > 1 {
				rules = append(rules, l)
			}
		}
	}
	return rules
}

// hostPort reads a TCP address of a bind line: "*:80", "ipv4@:80", "[::]:80", ":8000-8010" (the first port).
func hostPort(address string) (host string, low, high int, ok bool) {
	if kind, rest, found := strings.Cut(address, "@"); found {
		if kind != "ipv4" && kind != "ipv6" && kind != "tcp" && kind != "tcp4" && kind != "tcp6" {
			return "", 0, 0, false
		}
		address = rest
	}
	i := strings.LastIndexByte(address, ':')
	if i < 0 || strings.HasPrefix(address, "/") {
		return "", 0, 0, false
	}
	first, last, ranged := strings.Cut(address[i+1:], "-")
	low, err := strconv.Atoi(first)
	if err != nil {
		return "", 0, 0, false
	}
	high = low
	if ranged {
		if high, err = strconv.Atoi(last); err != nil {
			return "", 0, 0, false
		}
	}
	return strings.Trim(address[:i], "[]"), low, high, true
}

// listensOn reports whether a plain-text bind line takes the port.
func (p proxy) listensOn(port int) bool {
	for _, b := range p.binds {
		for _, a := range b.addresses {
			_, low, high, ok := hostPort(a)
			if ok && low <= port && port <= high && !slices.Contains(b.words, "ssl") {
				return true
			}
		}
	}
	return false
}

// reachable is an address at which this machine can speak to a port of the proxy without more ado; empty when there is none.
func (p proxy) reachable(port int) string {
	for _, b := range p.binds {
		if slices.Contains(b.words, "accept-proxy") || slices.Contains(b.words, "ssl") {
			continue
		}
		for _, a := range b.addresses {
			host, low, high, ok := hostPort(a)
			if !ok || port != 0 && (port < low || port > high) {
				continue
			}
			if port == 0 {
				port = low
			}
			switch host {
			case "", "*", "0.0.0.0":
				host = "127.0.0.1"
			case "::":
				host = "::1"
			}
			return net.JoinHostPort(host, strconv.Itoa(port))
		}
	}
	return ""
}

// HTTPFrontend is where this machine reaches the frontend that takes challenges; empty when the files do not tell.
func (c *Config) HTTPFrontend() string {
	for _, p := range c.frontends() {
		if p.listensOn(80) {
			return p.reachable(80)
		}
	}
	for _, p := range c.frontends() {
		if slices.ContainsFunc(p.Lines, func(l Line) bool { return parseFilter(l).file != "" }) {
			return p.reachable(0)
		}
	}
	return ""
}

// certificateSource is a crt or crt-list of a bind line, in order.
type certificateSource struct{ path string }

func (c *Config) sources(b bind) []certificateSource {
	base := c.value("global", "crt-base")
	var all []certificateSource
	for i, w := range b.words {
		if (w == "crt" || w == "crt-list") && i+1 < len(b.words) {
			path := b.words[i+1]
			if !filepath.IsAbs(path) && w == "crt" {
				path = filepath.Join(base, path)
			}
			all = append(all, certificateSource{filepath.Clean(path)})
		}
	}
	return all
}

// defaultCertificate looks at what a client gets that names no certificate, or an unknown one.
func (l *look) defaultCertificate() {
	const topic = "default"
	if l.Config == nil || l.Place.CrtList == "" {
		return
	}
	ours, tls := filepath.Clean(l.Place.CrtList), false
	found := false
	for _, p := range l.Config.frontends() {
		for _, b := range p.binds {
			if !slices.Contains(b.words, "ssl") {
				continue
			}
			tls = true
			sources := l.Config.sources(b)
			at := slices.IndexFunc(sources, func(s certificateSource) bool { return s.path == ours })
			if at < 0 {
				continue
			}
			found = true
			l.oneDefault(topic, p, b, sources[0].path, at)
		}
	}
	switch {
	case !tls:
		l.fail(topic, "no bind line of %s has ssl: write `bind :443 ssl strict-sni crt-list %s` in a frontend and reload HAProxy", l.files(), ours)
	case !found:
		l.note(topic, "no bind line of %s names %s: if HAProxy has it from elsewhere all is well; else name it on a bind line and reload HAProxy", l.files(), ours)
	}
}

func (l *look) oneDefault(topic string, p proxy, b bind, first string, at int) {
	where := "frontend " + p.name()
	old := ""
	if v := parseVersion(l.HAProxy.Version); v.known && v.before(2, 2, 12) {
		old = "; HAProxy before 2.2.12 goes on giving such clients the old certificate after a swap, until a reload (haproxy/haproxy#1143)"
	}
	switch {
	case slices.Contains(b.words, "strict-sni"):
		l.ok(topic, "%s: strict-sni, clients that name no known certificate are refused", where)
	case at > 0:
		l.ok(topic, "%s: clients that name no known certificate get that of %s", where, first)
	case l.Place.Lines == 0 && !l.Place.Directory && l.Place.ListErr == nil:
		l.fail(topic, "%s has neither strict-sni nor a default certificate, and %s is empty: HAProxy will not start again: write strict-sni, or `crt default.pem` before crt-list", where, l.Place.CrtList)
	case l.Place.Directory:
		l.note(topic, "%s has neither strict-sni nor a default certificate: clients that name no known one get the first by name after a reload, another one before it: write `crt default.pem` before it, or strict-sni%s", where, old)
	default:
		l.note(topic, "%s has neither strict-sni nor a default certificate: clients that name no known one get the first of %s: write strict-sni, or `crt default.pem` before crt-list, unless that is meant%s", where, l.Place.CrtList, old)
	}
}
