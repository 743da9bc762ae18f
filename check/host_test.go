package check

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func TestAgent(t *testing.T) {
	down := func(f *Facts) {
		f.HAProxy.Agents[0].Status, f.HAProxy.Agents[0].Check = "DOWN", "L4CON Connection refused"
	}
	none := func(f *Facts) { f.Sidecar.Running = false }
	noneRuns := "note sidecar: none runs: start 'spoacme run' when all above is right"
	testFaults(t, []fault{
		{"no backend", nil, func(f *Facts) { f.HAProxy.AgentsErr = errors.New("x") },
			[]string{"FAIL agent: HAProxy has no backend acme_agent: copy it from snippet.cfg and reload, or name yours with SPOACME_AGENT_BACKEND"}},
		{"no server", nil, func(f *Facts) { f.HAProxy.Agents = nil },
			[]string{"FAIL agent: backend acme_agent has no server: write `server agent \"${SPOACME_AGENT}\" check` and reload HAProxy"}},
		{"down", nil, down,
			[]string{"FAIL agent: backend acme_agent: server agent is DOWN (L4CON Connection refused), although the sidecar runs: see that its line says `option spop-check` and leads to 127.0.0.1:9765"}},
		{"down, no sidecar", nil, func(f *Facts) { down(f); none(f) },
			[]string{"note agent: backend acme_agent: server agent is DOWN, and no sidecar runs: start 'spoacme run'",
				noneRuns}},
		{"no check", nil, func(f *Facts) { f.HAProxy.Agents[0].Status = "no check" },
			[]string{"note agent: backend acme_agent: server agent has no health check, so challenges wait for a dead sidecar: write `option spop-check` and `check inter 2s`"}},
		{"elsewhere", nil, func(f *Facts) { f.HAProxy.Agents[0].Address = "127.0.0.1:12345" },
			[]string{"FAIL agent: backend acme_agent leads to 127.0.0.1:12345, the sidecar listens on 127.0.0.1:9765: write `server agent \"${SPOACME_AGENT}\" check` and reload HAProxy"}},
		{"chroot", []string{"setenv SPOACME_AGENT 127.0.0.1:9765", "setenv SPOACME_AGENT unix@/run/spoacme/agent.sock"}, func(f *Facts) { f.HAProxy.Agents[0].Address = "unix" },
			[]string{"FAIL agent: HAProxy looks for the sidecar's socket inside its chroot, at /var/lib/haproxy/run/spoacme/agent.sock, and the sidecar makes it at /run/spoacme/agent.sock: write `setenv SPOACME_AGENT 127.0.0.1:9765`, or start the sidecar with --agent unix@/var/lib/haproxy/run/spoacme/agent.sock"}},
		{"chroot, and right", []string{"setenv SPOACME_AGENT 127.0.0.1:9765", "setenv SPOACME_AGENT unix@/agent.sock"}, func(f *Facts) {
			f.HAProxy.Agents[0].Address, f.Settings.Agent = "unix", "unix@/var/lib/haproxy/agent.sock"
		}, nil},
		{"chroot of the process", nil, func(f *Facts) {
			f.Config, f.HAProxy.Chroot, f.Settings.Agent = nil, "/jail", "unix@/a.sock"
			f.HAProxy.Env["SPOACME_AGENT"] = "unix@/a.sock"
		}, []string{"note config: no haproxy.cfg was read, so its frontends and setenv lines were not looked at: name it with -f",
			"FAIL agent: HAProxy looks for the sidecar's socket inside its chroot, at /jail/a.sock, and the sidecar makes it at /a.sock: write `setenv SPOACME_AGENT 127.0.0.1:9765`, or start the sidecar with --agent unix@/jail/a.sock"}},
		{"no rows", nil, func(f *Facts) { f.HAProxy.RowsErr = errors.New("x") },
			[]string{"note rows: HAProxy has no backend certificates, so its statistics page does not show certificates: copy it from snippet.cfg and reload"}},
	})
}

func TestChallenge(t *testing.T) {
	answer := func(c Challenge) func(*Facts) {
		return func(f *Facts) { c.Address = "127.0.0.1:80"; f.Challenge = &c }
	}
	alone := func(c Challenge) func(*Facts) {
		return func(f *Facts) { answer(c)(f); f.Sidecar.Running = false }
	}
	const noneRuns = "note sidecar: none runs: start 'spoacme run' when all above is right"
	testFaults(t, []fault{
		{"not sent", nil, func(f *Facts) { f.Challenge = nil },
			[]string{"note challenge: no challenge was sent through HAProxy, because the address of its port 80 is not known: give it with --http-frontend 127.0.0.1:80"}},
		{"refused", nil, answer(Challenge{Err: errors.New("connection refused")}),
			[]string{"FAIL challenge: sent one through 127.0.0.1:80: connection refused: start HAProxy, or correct SPOACME_HTTP_FRONTEND"}},
		{"redirected", nil, answer(Challenge{Expected: "a.b", Status: 301, Location: "https://shop.example.com/"}),
			[]string{"FAIL challenge: sent one through 127.0.0.1:80: HAProxy answered 301 to https://shop.example.com/, not what the sidecar says: put the challenge lines of snippet.cfg at the top of this frontend and reload HAProxy"}},
		{"another body", nil, answer(Challenge{Expected: "a.b", Status: 200, Body: "a.b\n"}),
			[]string{"FAIL challenge: sent one through 127.0.0.1:80: HAProxy answered 200, not what the sidecar says: put the challenge lines of snippet.cfg at the top of this frontend and reload HAProxy"}},
		{"agent down", nil, answer(Challenge{Expected: "a.b", Status: 503, Body: "agent down"}),
			[]string{`FAIL challenge: sent one through 127.0.0.1:80: HAProxy says "agent down": make the server line of backend acme_agent lead to the sidecar at 127.0.0.1:9765`}},
		{"no sidecar", nil, alone(Challenge{Status: 503, Body: "agent down"}), []string{noneRuns}},
		{"no sidecar, another node's", nil, alone(Challenge{Status: 404, Body: "unknown token"}), []string{noneRuns}},
		{"no sidecar, the site's answer", nil, alone(Challenge{Status: 200, Body: "hello"}),
			[]string{"note challenge: sent one through 127.0.0.1:80 for an unknown token: HAProxy answered 200, as the site's own rules may: start 'spoacme run' and check again to see a real answer", noneRuns}},
		{"handshakes", nil, func(f *Facts) {
			f.Handshakes = []Handshake{{"shop", "127.0.0.1:443", "shop.example.com", nil, "AA", "AA"}, {"mail", "127.0.0.1:443", "mail.example.com", nil, "AA", "BB"},
				{"new", "127.0.0.1:443", "new.example.com", nil, "", ""}, {"bad", "127.0.0.1:443", "bad.example.com", errors.New("tls: unrecognized name"), "AA", ""}}
		}, []string{
			"FAIL tls: mail: clients of 127.0.0.1:443 get another certificate (SHA-1 BB) than the one stored (AA): another line may serve mail.example.com, see 'spoacme status'",
			"note tls: new: nothing is stored yet, so nothing can be compared: check again when it is issued",
			"FAIL tls: bad: handshake with 127.0.0.1:443 for bad.example.com: tls: unrecognized name: see 'spoacme status', and name HAProxy's own TLS address in SPOACME_PROBE"}},
	})
}

func TestPlaceAndHost(t *testing.T) {
	testFaults(t, []fault{
		{"no crt-list", nil, func(f *Facts) {
			f.Place = Place{Err: errors.New("HAProxy has loaded several crt-lists (a, b): choose")}
		},
			[]string{"FAIL crt-list: HAProxy has loaded several crt-lists (a, b): choose"}},
		{"place", nil, func(f *Facts) {
			f.Place.WriteErr, f.Place.Stray = errors.New("spoacme can't write to /x"), []Stray{{"README", "is no certificate"}}
			f.Place.Missing, f.Place.Exposed = []string{"/x/a.pem"}, []string{"/x/b.pem"}
		}, []string{"FAIL crt-list: spoacme can't write to /x",
			"FAIL crt-list: README in the certificate directory is no certificate: HAProxy will not start with it: move it away, into a subdirectory if need be",
			"FAIL crt-list: /etc/haproxy/spoacme/crt-list names /x/a.pem, which does not exist: HAProxy will not start: put the file back, or delete the line",
			"FAIL crt-list: everybody can read the private key in /x/b.pem: chmod o= /x/b.pem"}},
		{"list gone", nil, func(f *Facts) { f.Place.ListErr = errors.New("/x, which HAProxy has loaded, is gone: put it back") },
			[]string{"FAIL crt-list: /x, which HAProxy has loaded, is gone: put it back"}},
		{"buffer", nil, func(f *Facts) {
			s := store.Spec{KeyType: "rsa4096"}
			for i := range 100 {
				s.Domains = append(s.Domains, fmt.Sprintf("%s%03d.example.com", strings.Repeat("a", 50), i))
			}
			f.Settings.Certificates["shop"] = s
		}, []string{"note buffer: shop has, or may have, 18816 bytes, and HAProxy takes a command of 16384: write `tune.bufsize 32768` in the global section and restart HAProxy"}},
		{"ca", nil, func(f *Facts) { f.CAs[0].Err = errors.New("no such host"); f.CAs[0].Date = time.Time{} },
			[]string{"FAIL ca: https://acme-v02.api.letsencrypt.org/directory: no such host: let this machine reach it, or correct SPOACME_CA (and SPOACME_CA_ROOTS for a private one)"}},
		{"one of two", nil, func(f *Facts) { f.CAs = append(f.CAs, CA{Directory: "https://ca2", Err: errors.New("timeout")}) },
			[]string{"note ca: https://ca2: timeout: another CA is used until it answers"}},
		{"eab", nil, func(f *Facts) {
			f.CAs[0].NeedsEAB, f.Sidecar.Running = true, false
			f.Challenge.Status, f.Challenge.Expected = 404, ""
			f.Challenge.Body = "unknown token"
		},
			[]string{"FAIL ca: https://acme-v02.api.letsencrypt.org/directory asks for an external account binding: set SPOACME_EAB_KID and SPOACME_EAB_HMAC in the sidecar's own environment",
				"note sidecar: none runs: start 'spoacme run' when all above is right"}},
		{"profile", nil, func(f *Facts) {
			s := f.Settings.Certificates["shop"]
			s.Profile = "short"
			f.Settings.Certificates["shop"], f.CAs[0].Profiles = s, []string{"classic", "shortlived"}
		}, []string{"FAIL ca: https://acme-v02.api.letsencrypt.org/directory has no profile short, which certificate shop asks for: write one of classic, shortlived"}},
		{"clock", nil, func(f *Facts) { f.Now = f.Now.Add(-25 * time.Hour) },
			[]string{"FAIL clock: this machine is 25h0m0s behind the CA: set its clock (`timedatectl set-ntp true`)"}},
		{"clock, a little", nil, func(f *Facts) { f.Now = f.Now.Add(time.Minute) },
			[]string{"note clock: this machine is 1m0s ahead of the CA: set its clock (`timedatectl set-ntp true`)"}},
		{"store", nil, func(f *Facts) { f.Store.Mode = 0o755 },
			[]string{"FAIL store: /var/lib/spoacme has mode 0755, and private keys are in it: chmod 0700 /var/lib/spoacme"}},
		{"store unusable", nil, func(f *Facts) { f.Store.Err = errors.New("/var/lib/spoacme is not a directory") },
			[]string{"FAIL store: /var/lib/spoacme is not a directory"}},
		{"consul", nil, func(f *Facts) { f.Settings.Store, f.Store = "consul://127.0.0.1:8500/le", Dir{} }, nil},
		{"no keyset", nil, func(f *Facts) {
			f.Settings.Store, f.Store = "consul://127.0.0.1:8500/le", Dir{Err: errors.New("make keysets")}
		},
			[]string{"FAIL store: make keysets"}},
		{"sidecar", nil, func(f *Facts) { f.Sidecar.Wrong = []string{"disk: full"} }, []string{"FAIL sidecar: says of itself: disk: full"}},
		{"sidecar hides", nil, func(f *Facts) { f.Sidecar.Err = errors.New("may not connect to x: run this as root") },
			[]string{"FAIL sidecar: may not connect to x: run this as root"}},
		{"another user", nil, func(f *Facts) { f.User = "root" },
			[]string{"note user: this ran as root, the sidecar runs as spoacme: to see what it may read and write, run this as that user"}},
		{"ports", nil, func(f *Facts) {
			f.Sidecar = Sidecar{}
			f.Challenge = &Challenge{Address: "127.0.0.1:80", Status: 404, Body: "unknown token"}
			f.Root, f.User = true, "root"
			f.Ports = []Port{{"SPOACME_HTTP", "127.0.0.1:9766", errors.New("another program listens there: end it")}, {"SPOACME_AGENT", "127.0.0.1:9765", nil}}
		}, []string{"note sidecar: none runs: start 'spoacme run' when all above is right",
			"FAIL address: SPOACME_HTTP 127.0.0.1:9766: another program listens there: end it",
			"note user: this ran as root, who may do everything: run it as the sidecar's user"}},
	})
}
