package check

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spoacme/spoacme/settings"
)

// socket looks at the stats socket.
func (l *look) socket() {
	const topic = "socket"
	h := l.HAProxy
	switch {
	case h.Err != nil:
		l.fail(topic, "%v", h.Err)
		return
	case h.ListErr != nil:
		l.fail(topic, "%s: %v", h.Socket, h.ListErr)
		return
	}
	l.ok(topic, "%s answers, level admin", h.Socket)
	if l.Config == nil {
		return
	}
	if t := l.Config.value("global", "stats", "timeout"); t != "" && seconds(t) < 10 {
		l.note(topic, "`stats timeout %s` is short: a swap of a big certificate may take longer: write `stats timeout 30s`", t)
	}
}

// seconds reads a time of HAProxy's configuration, whose unit is milliseconds unless it says another.
func seconds(t string) float64 {
	var n float64
	var unit string
	fmt.Sscanf(t, "%f%s", &n, &unit)
	return n * map[string]float64{"": 0.001, "ms": 0.001, "us": 1e-6, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
}

// agent looks at the way from HAProxy to the sidecar.
func (l *look) agent() {
	const topic = "agent"
	if l.HAProxy.Err != nil {
		return
	}
	backend := l.Settings.AgentBackend
	servers := l.HAProxy.Agents
	switch {
	case l.HAProxy.AgentsErr != nil:
		l.fail(topic, "HAProxy has no backend %s: copy it from snippet.cfg and reload, or name yours with SPOACME_AGENT_BACKEND", backend)
		return
	case len(servers) == 0:
		l.fail(topic, "backend %s has no server: write `server agent \"${SPOACME_AGENT}\" check` and reload HAProxy", backend)
		return
	}
	if l.chroot(topic) || l.elsewhere(topic) {
		return
	}
	up := slices.IndexFunc(servers, func(s Server) bool { return strings.HasPrefix(s.Status, "UP") })
	switch s := servers[0]; {
	case up >= 0:
		l.ok(topic, "backend %s: server %s is UP", backend, servers[up].Name)
	case s.Status == "no check" && l.Sidecar.Running:
		l.note(topic, "backend %s: server %s has no health check, so challenges wait for a dead sidecar: write `option spop-check` and `check inter 2s`", backend, s.Name)
	case !l.Sidecar.Running:
		l.note(topic, "backend %s: server %s is %s, and no sidecar runs: start 'spoacme run'", backend, s.Name, s.Status)
	default:
		l.fail(topic, "backend %s: server %s is %s%s, although the sidecar runs: see that its line says `option spop-check` and leads to %s", backend, s.Name, s.Status, because(s.Check), l.Settings.Agent)
	}
}

func because(check string) string {
	if check == "" {
		return ""
	}
	return " (" + check + ")"
}

// serverAddress is where the files, or the environment, send HAProxy for the sidecar.
func (l *look) serverAddress() string {
	if l.Config != nil {
		if b := l.Config.backend(l.Settings.AgentBackend); b != nil {
			for _, v := range b.values("server") {
				if len(v) > 1 && !slices.Contains(v, "backup") {
					return v[1]
				}
			}
		}
	}
	if a := l.HAProxy.Env["SPOACME_AGENT"]; a != "" {
		return a
	}
	return l.Settings.Agent
}

// chroot reports a unix socket that HAProxy looks for inside its chroot.
func (l *look) chroot(topic string) bool {
	root := l.HAProxy.Chroot
	if root == "" && l.Config != nil {
		root = l.Config.value("global", "chroot")
	}
	network, path := settings.Network(l.serverAddress())
	_, own := settings.Network(l.Settings.Agent)
	if network != "unix" || root == "" || root == "/" {
		return false
	}
	real := filepath.Join(root, path)
	if real == own {
		return false
	}
	l.fail(topic, "HAProxy looks for the sidecar's socket inside its chroot, at %s, and the sidecar makes it at %s: write `setenv SPOACME_AGENT 127.0.0.1:9765`, or start the sidecar with --agent unix@%s", real, own, real)
	return true
}

// elsewhere reports servers that lead to another address than the sidecar's.
func (l *look) elsewhere(topic string) bool {
	network, own := settings.Network(l.Settings.Agent)
	var others []string
	for _, s := range l.HAProxy.Agents {
		if network != "tcp" || s.Address == "" || strings.HasPrefix(s.Address, "unix") || sameAddress(s.Address, own) {
			return false
		}
		others = append(others, s.Address)
	}
	l.fail(topic, "backend %s leads to %s, the sidecar listens on %s: write `server agent \"${SPOACME_AGENT}\" check` and reload HAProxy", l.Settings.AgentBackend, strings.Join(others, ", "), own)
	return true
}

// sameAddress compares what HAProxy resolved with what is written; a name, or all addresses, may be the same.
func sameAddress(resolved, written string) bool {
	i, j := strings.LastIndexByte(resolved, ':'), strings.LastIndexByte(written, ':')
	if i < 0 || j < 0 || resolved[i:] != written[j:] {
		return false
	}
	host := strings.Trim(written[:j], "[]")
	return strings.Trim(resolved[:i], "[]") == host || host == "0.0.0.0" || host == "::" || strings.Trim(host, "0123456789abcdef.:") != ""
}

// rows looks at the backend of the statistics page.
func (l *look) rows() {
	const topic = "rows"
	v := parseVersion(l.HAProxy.Version)
	switch {
	case l.HAProxy.Err != nil || !v.known:
	case l.HAProxy.RowsErr != nil:
		l.note(topic, "HAProxy has no backend %s, so its statistics page does not show certificates: copy it from snippet.cfg and reload", l.Settings.RowsBackend)
	case v.before(2, 6, 0):
		l.ok(topic, "HAProxy %d.%d can't add a row per certificate; 'spoacme status' shows the same", v.major, v.minor)
	default:
		l.ok(topic, "the statistics page shows certificates in backend %s", l.Settings.RowsBackend)
	}
}
