package check

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const (
	filterLine = "    filter spoe engine acme config /etc/haproxy/spoe-acme.conf\n"
	sendLine   = "    http-request send-spoe-group acme challenge if acme_path !acme_down\n"
	bindTLS    = "bind :443 ssl strict-sni crt-list /etc/haproxy/spoacme/crt-list alpn h2,http/1.1"
)

func TestFrontend(t *testing.T) {
	const above = " stands above the challenge rules, so challenges never reach the sidecar: move the challenge rules above it and reload HAProxy"
	const maybe = " stands above the challenge rules: if its condition can hold for a challenge, move the challenge rules above it"
	before := func(rule string) []string { return []string{filterLine, filterLine + "    " + rule + "\n"} }
	testFaults(t, []fault{
		{"redirect", before("http-request redirect scheme https code 301"), nil, []string{"FAIL frontend: http: `http-request redirect` (haproxy.cfg:N)" + above}},
		{"redirect of plain text", before("http-request redirect scheme https unless { ssl_fc }"), nil, []string{"FAIL frontend: http: `http-request redirect` (haproxy.cfg:N)" + above}},
		{"redirect, challenges excepted", before("http-request redirect scheme https unless { path_beg /.well-known/acme-challenge/ }"), nil, nil},
		{"redirect, acl excepted", before("http-request redirect scheme https if !acme_path"), nil, nil},
		{"deny", before("http-request deny if { src 192.0.2.0/24 }"), nil, []string{"note frontend: http: `http-request deny` (haproxy.cfg:N)" + maybe}},
		{"header", before("http-request set-header X y"), nil, nil},
		{"use_backend", before("use_backend site if { path / }"), nil,
			[]string{"note frontend: http: `use_backend` (haproxy.cfg:N) stands above the challenge rules: HAProxy runs those first all the same, and warns at every start: move them up"}},
		{"no send rule", []string{sendLine, ""}, nil,
			[]string{"FAIL frontend: http: no rule `http-request send-spoe-group acme challenge if acme_path`, so the sidecar is never asked: copy the challenge lines of snippet.cfg and reload HAProxy"}},
		{"no answer rule", []string{"%[var(txn.acme.keyauth)]", "x", "var(txn.acme.keyauth) -m found", "path /x"}, nil,
			[]string{"FAIL frontend: http: no rule `http-request return` with txn.acme.keyauth, so what the sidecar says is never sent: copy the challenge lines of snippet.cfg and reload HAProxy"}},
		{"mode tcp", []string{"    option httplog\n", "    mode tcp\n"}, nil,
			[]string{"FAIL frontend: http is in mode tcp: challenges are answered in mode http only: write `mode http` and reload HAProxy"}},
		{"another port", []string{"bind :80", "bind :8080"}, nil,
			[]string{"note frontend: http: no frontend of haproxy.cfg listens on port 80, where the CA asks: all is well only if something brings port 80 to http; name its address in SPOACME_HTTP_FRONTEND then"}},
		{"another port, named", []string{"bind :80", "bind 127.0.0.1:8080"}, func(f *Facts) { f.Settings.HTTPFrontend = "127.0.0.1:8080" }, nil},
		{"a range", []string{"bind :80", "bind ipv4@:79-81,[::]:80"}, nil, nil},
		{"another backend", nil, func(f *Facts) { f.Settings.AgentBackend = "other" },
			[]string{"FAIL frontend: http has no `filter spoe` line for backend other: copy the challenge lines of snippet.cfg to the top of it and reload HAProxy"}},
		{"wrong engine", []string{"engine acme", "engine amce"}, nil,
			[]string{"FAIL frontend: http: /etc/haproxy/spoe-acme.conf has no section [amce]: copy spoe-acme.conf there and reload HAProxy"}},
		{"SPOE file can't be read", nil, func(f *Facts) { clear(f.Config.SPOE); f.Config.Unread["x"] = errors.New("read x: permission denied") },
			[]string{"note config: read x: permission denied: what is in it was not looked at: run this as a user that may read it"}},
		{"rule of defaults", []string{"defaults\n", "defaults\n    http-request redirect scheme https\n"}, nil,
			[]string{"FAIL frontend: http: `http-request redirect` (haproxy.cfg:N)" + above}},
		{"no filter", []string{filterLine, ""}, nil,
			[]string{"FAIL frontend: http has no `filter spoe` line for backend acme_agent: copy the challenge lines of snippet.cfg to the top of it and reload HAProxy"}},
		{"no port 80 at all", []string{"bind :80", "bind unix@/run/x", filterLine, ""}, nil,
			[]string{"FAIL frontend: no frontend of haproxy.cfg listens on port 80, where the CA asks: write one as in snippet.cfg, with `bind :80`"}},
	})
}

func TestDefaultCertificate(t *testing.T) {
	testFaults(t, []fault{
		{"default", []string{bindTLS, "bind :443 ssl crt /etc/haproxy/default.pem crt-list /etc/haproxy/spoacme/crt-list"}, nil, nil},
		{"crt-base", []string{bindTLS, "bind :443 ssl crt default.pem crt-list /etc/haproxy/spoacme/crt-list"}, nil, nil},
		{"none", []string{bindTLS, "bind :443 ssl crt-list /etc/haproxy/spoacme/crt-list"}, nil,
			[]string{"note default: frontend https has neither strict-sni nor a default certificate: clients that name no known one get the first of /etc/haproxy/spoacme/crt-list: write strict-sni, or `crt default.pem` before crt-list, unless that is meant"}},
		{"none, 2.2.9", []string{bindTLS, "bind :443 ssl crt-list /etc/haproxy/spoacme/crt-list"}, func(f *Facts) { f.HAProxy.Version = "2.2.9-2+deb11u6" },
			[]string{"note default: frontend https has neither strict-sni nor a default certificate: clients that name no known one get the first of /etc/haproxy/spoacme/crt-list: write strict-sni, or `crt default.pem` before crt-list, unless that is meant; HAProxy before 2.2.12 goes on giving such clients the old certificate after a swap, until a reload (haproxy/haproxy#1143)"}},
		{"none, and empty", []string{bindTLS, "bind :443 ssl crt-list /etc/haproxy/spoacme/crt-list"}, func(f *Facts) { f.Place.Lines = 0 },
			[]string{"FAIL default: frontend https has neither strict-sni nor a default certificate, and /etc/haproxy/spoacme/crt-list is empty: HAProxy will not start again: write strict-sni, or `crt default.pem` before crt-list"}},
		{"directory", []string{bindTLS, "bind :443 ssl crt /etc/haproxy/certs/"}, func(f *Facts) {
			f.Place.CrtList, f.Place.CrtDir, f.Place.Directory = "/etc/haproxy/certs", "/etc/haproxy/certs", true
		}, []string{"note default: frontend https has neither strict-sni nor a default certificate: clients that name no known one get the first by name after a reload, another one before it: write `crt default.pem` before it, or strict-sni"}},
		{"no TLS", []string{bindTLS, "bind :443"}, nil,
			[]string{"FAIL default: no bind line of haproxy.cfg has ssl: write `bind :443 ssl strict-sni crt-list /etc/haproxy/spoacme/crt-list` in a frontend and reload HAProxy"}},
		{"another list", nil, func(f *Facts) { f.Place.CrtList = "/srv/list" },
			[]string{"note default: no bind line of haproxy.cfg names /srv/list: if HAProxy has it from elsewhere all is well; else name it on a bind line and reload HAProxy"}},
	})
}

func TestWords(t *testing.T) {
	env := map[string]string{"OUT": "side"}
	for in, want := range map[string][]string{
		`server agent "${SPOACME_AGENT}" check # comment`: {"server", "agent", "127.0.0.1:9765", "check"},
		`a 'b  c' "d e"f g\ h '$OUT' $OUT "$OUT/x"`:       {"a", "b  c", "d ef", "g h", "$OUT", "$OUT", "side/x"},
		`x "" "${NONE-def}" "${OUT[*]}" "a\"b" y#z`:       {"x", "", "def", "side", `a"b`, "y"},
		"\tx\r\n": {"x"},
		"   # y":  nil,
		`"open`:   {"open"},
		`"${open`: {"${open"},
		`x\`:      {`x\`},
	} {
		c := NewConfig(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		c.Add("f", "global\nsetenv SPOACME_AGENT 127.0.0.1:9765\n")
		if got := c.words(in); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestHTTPFrontend(t *testing.T) {
	for in, want := range map[string]string{
		"frontend a\n bind :80":                                     "127.0.0.1:80",
		"frontend a\n bind [::]:80 v4v6":                            "[::1]:80",
		"frontend a\n bind 192.0.2.1:80,192.0.2.2:80":               "192.0.2.1:80",
		"frontend a\n bind *:80 accept-proxy":                       "",
		"frontend a\n bind *:8080\n filter spoe engine e config /f": "127.0.0.1:8080",
		"frontend a\n bind *:8080":                                  "",
		"listen a\n bind unix@/x\n bind ipv4@10.0.0.1:70-90":        "10.0.0.1:80",
	} {
		c := NewConfig(nil)
		c.Add("f", in)
		if got := c.HTTPFrontend(); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Whatever a file holds, reading it ends.
func FuzzConfig(f *testing.F) {
	f.Add("global\n setenv A \"${B}\"\nfrontend x\n bind :80\n filter spoe engine e config /f\n http-request redirect scheme https unless { ssl_fc }")
	f.Add(".if\n.endif\n.endif\n[x]\nlisten\n bind\n http-request\n acl\n server\n redirect")
	f.Add("global\n" + strings.Repeat("setenv A \"x${A}${A}\"\n", 64)) // a value that doubles at every line
	f.Fuzz(func(t *testing.T, text string) {
		c := NewConfig(nil)
		c.Add("f", text)
		c.HTTPFrontend()
		for _, file := range c.SPOEFiles() {
			c.SPOE[file] = c
		}
		Look(Facts{Config: c, HAProxy: HAProxy{Env: map[string]string{"SPOACME_X": "y"}, Version: "3.0.1"}, Place: Place{CrtList: "/x"}})
	})
}
