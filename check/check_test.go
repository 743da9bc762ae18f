package check

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/settings"
)

// shipped reads haproxy-conf/NAME with its SPOE file, after a change to its text.
func shipped(t *testing.T, name string, change ...string) *Config {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("..", "haproxy-conf", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	text := read(name)
	for i := 0; i < len(change); i += 2 {
		if !strings.Contains(text, change[i]) {
			t.Fatalf("%s has no %q", name, change[i])
		}
		text = strings.Replace(text, change[i], change[i+1], 1)
	}
	c := NewConfig(nil)
	c.Add("haproxy.cfg", text)
	for _, file := range c.SPOEFiles() {
		c.SPOE[file] = NewConfig(nil)
		c.SPOE[file].Add(file, read("spoe-acme.conf"))
	}
	return c
}

// inForce is what HAProxy has when it took the file.
func inForce(c *Config) map[string]string {
	env := c.Environment()
	env["PATH"] = "/usr/bin"
	return env
}

// good is a node on which all is well, with its sidecar running.
func good(t *testing.T, c *Config) Facts {
	t.Helper()
	env := inForce(c)
	s, problems := settings.Load(settings.Source{Name: settings.FromHAProxy, Values: env})
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const list = "/etc/haproxy/spoacme/crt-list"
	return Facts{
		Now: now, User: "spoacme", Settings: s, Problems: problems, Config: c,
		HAProxy: HAProxy{
			Socket: "/run/haproxy/admin.sock", Version: "3.2.26-1", PID: 7, Env: env, Buffer: 16384,
			Lists: []List{{list, 1}}, Agents: []Server{{"agent", "127.0.0.1:9765", "UP", "L7OK"}},
		},
		Place:     Place{CrtList: list, CrtDir: "/etc/haproxy/spoacme", Lines: 1},
		Sidecar:   Sidecar{Running: true, User: "spoacme", Version: "1.0"},
		Store:     Dir{Path: "/var/lib/spoacme", Mode: 0o700},
		CAs:       []CA{{Directory: "https://acme-v02.api.letsencrypt.org/directory", Date: now, Took: 80 * time.Millisecond}},
		Challenge: &Challenge{Address: "127.0.0.1:80", Expected: "a.b", Status: 200, Body: "a.b"},
	}
}

func lines(found []Finding) string {
	var b strings.Builder
	for _, f := range found {
		b.WriteString(string(f.Level) + " " + f.Topic + ": " + f.Message + "\n")
	}
	return b.String()
}

func TestGood(t *testing.T) {
	want := `ok config: read haproxy.cfg
ok socket: /run/haproxy/admin.sock answers, level admin
ok haproxy: version 3.2.26-1, pid 7
ok settings: 5 in force in HAProxy, all understood
ok setenv: what haproxy.cfg sets is what is in force
ok certificate: shop: shop.example.com, www.shop.example.com challenge=http-01 key=ec256
ok crt-list: /etc/haproxy/spoacme/crt-list names 1 certificate, PEM files go into /etc/haproxy/spoacme
ok default: frontend https: strict-sni, clients that name no known certificate are refused
ok agent: backend acme_agent: server agent is UP
ok frontend: http: challenges are answered before every other rule
ok challenge: sent one through 127.0.0.1:80, and the sidecar's answer came back
ok rows: the statistics page shows certificates in backend certificates
ok buffer: tune.bufsize is 16384 bytes, enough for these certificates
ok ca: https://acme-v02.api.letsencrypt.org/directory answers in 80ms
ok clock: agrees with the CA's
ok store: /var/lib/spoacme can be used, and by nobody else
ok sidecar: version 1.0 runs as user spoacme and finds nothing wrong
`
	found := Look(good(t, shipped(t, "haproxy.cfg")))
	if got := lines(found); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if Failed(found) {
		t.Error("failed")
	}
	for _, f := range Look(good(t, shipped(t, "snippet.cfg"))) {
		if f.Level != OK {
			t.Errorf("snippet.cfg: %+v", f)
		}
	}
}

// fault is a change to a good node and the findings that it must add; every other finding that is not ok is an error.
type fault struct {
	name   string
	config []string // changes to haproxy.cfg, in pairs
	facts  func(*Facts)
	want   []string
}

var number = regexp.MustCompile(`haproxy\.cfg:[0-9]+`)

func testFaults(t *testing.T, faults []fault) {
	t.Helper()
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			f := good(t, shipped(t, "haproxy.cfg", c.config...))
			if c.facts != nil {
				c.facts(&f)
			}
			var got []string
			for _, found := range Look(f) {
				if found.Level != OK {
					got = append(got, number.ReplaceAllString(strings.TrimSuffix(lines([]Finding{found}), "\n"), "haproxy.cfg:N"))
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestSocketAndVersion(t *testing.T) {
	down := errors.New("HAProxy can't be reached: socket /run/haproxy/admin.sock: nobody listens; start HAProxy")
	testFaults(t, []fault{
		{"haproxy down", nil, func(f *Facts) { f.HAProxy = HAProxy{Err: down}; f.Challenge = nil },
			[]string{"FAIL socket: " + down.Error()}},
		{"not admin", nil, func(f *Facts) { f.HAProxy.ListErr = errors.New("HAProxy: permission denied: write `level admin`") },
			[]string{"FAIL socket: /run/haproxy/admin.sock: HAProxy: permission denied: write `level admin`"}},
		{"no env", nil, func(f *Facts) { f.HAProxy.Env, f.HAProxy.EnvErr = nil, errors.New("read settings: not allowed") },
			[]string{"FAIL settings: read settings: not allowed"}},
		{"cached", nil, func(f *Facts) { f.FromCache, f.HAProxy = true, HAProxy{Err: down}; f.Challenge = nil },
			[]string{"FAIL socket: " + down.Error(),
				"note settings: HAProxy can't be asked, so these are the settings of last time: start HAProxy and check again"}},
		{"from files", nil, func(f *Facts) { f.FromFiles, f.HAProxy = true, HAProxy{Err: down}; f.Challenge = nil },
			[]string{"FAIL socket: " + down.Error(),
				"note settings: HAProxy can't be asked, so these are the settings as haproxy.cfg has them: start HAProxy and check again"}},
		{"old", nil, func(f *Facts) { f.HAProxy.Version = "2.0.33" },
			[]string{"FAIL haproxy: version 2.0.33 is too old: update to 2.2 or newer"}},
		{"unknown", nil, func(f *Facts) { f.HAProxy.Version = "main" },
			[]string{`note haproxy: version "main" is not understood: 2.2 or newer is needed`}},
		{"2.2.12", nil, func(f *Facts) { f.HAProxy.Version = "2.2.12" },
			[]string{"FAIL haproxy: version 2.2.12 crashes at its start with a default certificate (haproxy/haproxy#1143): update to 2.2.13 or newer"}},
		{"2.9.6", nil, func(f *Facts) { f.HAProxy.Version = "2.9.6-9eafce5" },
			[]string{"FAIL haproxy: version 2.9.6-9eafce5 can end itself over its SPOE filter (haproxy/haproxy#2490): update to a newer release"}},
		{"stats timeout", []string{"stats timeout 30s", "stats timeout 900ms"}, nil,
			[]string{"note socket: `stats timeout 900ms` is short: a swap of a big certificate may take longer: write `stats timeout 30s`"}},
		{"no config", nil, func(f *Facts) { f.Config = nil },
			[]string{"note config: no haproxy.cfg was read, so its frontends and setenv lines were not looked at: name it with -f"}},
		{"config can't be read", nil, func(f *Facts) { f.Config, f.ConfigErr = nil, errors.New("read x.cfg: permission denied: name files") },
			[]string{"FAIL config: read x.cfg: permission denied: name files"}},
	})
}

func TestSettings(t *testing.T) {
	testFaults(t, []fault{
		{"stale", nil, func(f *Facts) { f.HAProxy.Env["SPOACME_LOG"] = "debug" },
			[]string{"FAIL setenv: SPOACME_LOG is in force, but not in haproxy.cfg: it is left over from before a reload, or HAProxy's own start sets it: write `unsetenv SPOACME_LOG` and reload, or restart HAProxy"}},
		{"stale, of no effect", nil, func(f *Facts) {
			f.HAProxy.Env["SPOACME_CERT_old"] = "old.example.com"
			_, f.Problems = settings.Load(settings.Source{Name: settings.FromHAProxy, Values: f.HAProxy.Env})
		}, []string{"note setenv: SPOACME_CERT_old is in force, but not in haproxy.cfg: it is left over and has no effect: to be rid of it write `unsetenv SPOACME_CERT_old` and reload, or restart HAProxy"}},
		{"missing", nil, func(f *Facts) { delete(f.HAProxy.Env, "SPOACME_EMAIL") },
			[]string{"FAIL setenv: haproxy.cfg:N: SPOACME_EMAIL is not in force yet: reload HAProxy"}},
		{"different", nil, func(f *Facts) { f.HAProxy.Env["SPOACME_CA"] = "zerossl" },
			[]string{`FAIL setenv: haproxy.cfg:N: SPOACME_CA is "letsencrypt" there, but "zerossl" is in force: reload HAProxy, and see in its log that it took the file`}},
		{"unset, still there", []string{"setenv SPOACME_CA letsencrypt", "unsetenv SPOACME_CA"}, func(f *Facts) { f.HAProxy.Env["SPOACME_CA"] = "zerossl" },
			[]string{"FAIL setenv: haproxy.cfg:N: SPOACME_CA is unset there, but still in force: reload HAProxy"}},
		{"presetenv", []string{"setenv SPOACME_CA letsencrypt", "presetenv SPOACME_CA google"}, func(f *Facts) { f.HAProxy.Env["SPOACME_CA"] = "zerossl" },
			[]string{`FAIL setenv: haproxy.cfg:N: presetenv SPOACME_CA does not change what is there ("zerossl"): use setenv and reload, or restart HAProxy`}},
		{"unquoted", []string{"shop.example.com,www.shop.example.com", "shop.example.com, www.shop.example.com"}, nil,
			[]string{"FAIL settings: SPOACME_CERT_shop from haproxy.cfg (setenv): ends with a comma: words after a space may have been lost: write it without spaces, or in quotes",
				"FAIL setenv: haproxy.cfg:N: SPOACME_CERT_shop has several words without quotes, of which HAProxy 2.x keeps the first and 3.x none: write commas without spaces"}},
		{"a secret is not shown", []string{"setenv SPOACME_CA letsencrypt", "setenv SPOACME_EAB_HMAC s3cret-1"}, func(f *Facts) { f.HAProxy.Env["SPOACME_EAB_HMAC"] = "s3cret-2"; f.Problems = nil },
			[]string{"FAIL setenv: haproxy.cfg:N: SPOACME_EAB_HMAC is a secret value there, but a secret value is in force: reload HAProxy, and see in its log that it took the file"}},
		{"conditional", []string{"setenv SPOACME_CA letsencrypt", "setenv SPOACME_CA letsencrypt\n.if feature(X)\nsetenv SPOACME_CA google\n.endif"},
			func(f *Facts) { f.HAProxy.Env["SPOACME_CA"] = "letsencrypt" }, nil},
		{"misspelt", []string{"SPOACME_EMAIL", "SPOACME_EMIAL"}, nil,
			[]string{"FAIL settings: SPOACME_EMIAL from haproxy.cfg (setenv): is not a setting: did you mean SPOACME_EMAIL?"}},
		{"no certificate", []string{"    setenv SPOACME_CERTS shop\n", "", "    setenv SPOACME_CERT_shop shop.example.com,www.shop.example.com\n", ""}, nil,
			[]string{"note certificate: haproxy.cfg asks for none: name them with `setenv SPOACME_CERTS shop` and `setenv SPOACME_CERT_shop shop.example.com`, or use `spoacme issue`"}},
	})
}
