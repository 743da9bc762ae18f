package settings

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/store"
)

func haproxy(pairs ...string) Source { return source(FromHAProxy, pairs...) }

func source(name string, pairs ...string) Source {
	s := Source{Name: name, Values: make(map[string]string)}
	for i := 0; i < len(pairs); i += 2 {
		s.Values[pairs[i]] = pairs[i+1]
	}
	return s
}

func TestDefaults(t *testing.T) {
	s, problems := Load(source(FromFlags, "SPOACME_NODE", "lb1"))
	want := Settings{
		Agent: "127.0.0.1:9765", AgentCheck: "127.0.0.1:9767", HTTP: "127.0.0.1:9766",
		Role: "node", AgentBackend: "acme_agent", RowsBackend: "certificates",
		CAs:   []string{"https://acme-v02.api.letsencrypt.org/directory"},
		Store: "file:///var/lib/spoacme", State: "/var/lib/spoacme", Control: "/run/spoacme/spoacme.sock",
		Node: "lb1", LogLevel: slog.LevelInfo,
		Certificates: map[string]store.Spec{}, from: map[string]string{"SPOACME_NODE": FromFlags},
	}
	if len(problems) > 0 || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, %v\nwant %+v", s, problems, want)
	}
	if s, _ := Load(); s.Node == "" {
		t.Error("no node name")
	}
}

func TestPrecedence(t *testing.T) {
	s, problems := Load(
		source(FromFlags, "SPOACME_CA", "zerossl", "SPOACME_EMAIL", ""),
		source(FromEnvironment, "SPOACME_CA", "google", "SPOACME_EMAIL", "env@example.com", "HOME", "/root"),
		haproxy("SPOACME_CA", "letsencrypt", "SPOACME_EMAIL", "cfg@example.com", "SPOACME_AGENT", "unix@/run/a.sock", "PATH", "/bin",
			"SPOACME_CERTS", "shop,mail", "SPOACME_CERT_shop", "shop.example", "SPOACME_CERT_mail", "mail.example"),
	)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := s.CAs[0] + " " + s.Email + " " + s.Agent; got != "https://acme.zerossl.com/v2/DV90 env@example.com unix@/run/a.sock" {
		t.Error(got)
	}
	for variable, want := range map[string]string{
		"SPOACME_CA": FromFlags, "SPOACME_EMAIL": FromEnvironment, "SPOACME_AGENT": FromHAProxy,
		"SPOACME_HTTP": FromDefault, "SPOACME_CERTS": FromHAProxy, "SPOACME_CERT_shop": FromHAProxy,
	} {
		if got := s.From(variable); got != want {
			t.Errorf("From(%s) = %s, want %s", variable, got, want)
		}
	}
	if len(s.Certificates) != 2 || len(s.Refused) != 0 {
		t.Errorf("%v, refused %v", s.Certificates, s.Refused)
	}
}

func TestValues(t *testing.T) {
	s, problems := Load(
		source(FromEnvironment, "SPOACME_EAB_KID", "kid-1", "SPOACME_EAB_HMAC", "c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "SPOACME_SOCKET", "unix@/run//h.sock",
			"SPOACME_STATE", "/srv/state/", "SPOACME_HTTP", "off"),
		haproxy("SPOACME_CA", "letsencrypt, https://ca.lan/dir,LetsEncrypt", "SPOACME_LOG", "WARN", "SPOACME_EMAIL", "mailto:ops@example.com",
			"SPOACME_CRT_LIST", "certs/list", "SPOACME_PROBE", "[::1]:0443", "SPOACME_CRT_DIR", "/etc/haproxy/spoacme/"),
	)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if string(s.EAB.HMAC.Reveal()) != "c2VjcmV0LXNlY3JldC1zZWNyZXQ" || s.EAB.KeyID != "kid-1" {
		t.Error("wrong EAB")
	}
	s.EAB, s.from, s.Node = EAB{}, nil, ""
	want := Settings{
		Socket: "/run/h.sock", State: "/srv/state", Store: "file:///srv/state", HTTP: "",
		CAs:      []string{"https://acme-v02.api.letsencrypt.org/directory", "https://ca.lan/dir"},
		LogLevel: slog.LevelWarn, Email: "ops@example.com", CrtList: "certs/list", CrtDir: "/etc/haproxy/spoacme", Probe: "[::1]:443",
		Agent: "127.0.0.1:9765", AgentCheck: "127.0.0.1:9767", Role: "node", AgentBackend: "acme_agent", RowsBackend: "certificates",
		Control: "/run/spoacme/spoacme.sock", Certificates: map[string]store.Spec{},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf(" got %+v\nwant %+v", s, want)
	}
	if s.StoreDir() != "/srv/state" {
		t.Error(s.StoreDir())
	}
}

// staleHint is what follows a complaint about a line that may be gone from haproxy.cfg.
func staleHint(name string) string {
	return " (gone from haproxy.cfg, and still here? HAProxy before 3.2 keeps it over reloads: write unsetenv " + name + ")"
}

// complaint is settings of one source and a problem that they must cause.
type complaint struct {
	in    Source
	want  string
	level Level
}

const cfg = " from haproxy.cfg (setenv): "

func TestProblems(t *testing.T) {
	for _, c := range slices.Concat(badValues(), badNames(), badCertificates(), secrets()) {
		_, problems := Load(c.in)
		found := false
		for _, p := range problems {
			found = found || p.Error() == c.want && p.Level == c.level
			if strings.Contains(p.Error(), "s3cret") || strings.Contains(p.Error(), "\n") {
				t.Errorf("a secret or two lines: %v", p)
			}
		}
		if !found {
			t.Errorf("%v\n got %v\nwant %s: %s", c.in.Values, problems, c.level, c.want)
		}
	}
}

func badValues() []complaint {
	return []complaint{
		{haproxy("SPOACME_EMAIL", "ops"), "SPOACME_EMAIL" + cfg + `"ops" is not an e-mail address: write one, such as ops@example.com`, Fatal},
		{haproxy("SPOACME_EMAIL", "Ops <ops@example.com>"), "SPOACME_EMAIL" + cfg + `"Ops <ops@example.com>" is not an e-mail address: write one, such as ops@example.com`, Fatal},
		{source(FromFlags, "SPOACME_EMAIL", "ops"), `--email: "ops" is not an e-mail address: write one, such as ops@example.com`, Fatal},
		{source(FromFlags, "SPOACME_CRT_DIR", "certs"), `--crt-dir: "certs" is not an absolute path: begin it with /`, Fatal},
		{source(FromEnvironment, "SPOACME_SOCKET", "127.0.0.1:9999"), `SPOACME_SOCKET from environment: "127.0.0.1:9999" is not an absolute path: begin it with /`, Fatal},
		{haproxy("SPOACME_CRT_LIST", "/etc/my list"), "SPOACME_CRT_LIST" + cfg + `"/etc/my list" can't be named in a command to HAProxy: use a path without space, ; and <`, Fatal},
		{haproxy("SPOACME_CA", "letsencrypt-stagin"), "SPOACME_CA" + cfg + `"letsencrypt-stagin" is not the short name of a CA: did you mean letsencrypt-staging? (or a directory URL)`, Fatal},
		{haproxy("SPOACME_CA", "pebble"), "SPOACME_CA" + cfg + `"pebble" is not the short name of a CA: write one of actalis, google, google-staging, letsencrypt, letsencrypt-staging, sslcom, zerossl (or a directory URL)`, Fatal},
		{haproxy("SPOACME_CA", "letsencrypt,"), "SPOACME_CA" + cfg + "ends with a comma: words after a space may have been lost: write it without spaces, or in quotes", Fatal},
		{haproxy("SPOACME_CA", "http://localhost:14000/dir"), "SPOACME_CA" + cfg + `"http://localhost:14000/dir": ACME goes over https only: write https://localhost:14000/dir`, Fatal},
		{haproxy("SPOACME_CA", "https://me:pw@ca.lan/dir"), "SPOACME_CA" + cfg + "the directory URL has a user or a fragment: write https://HOST/PATH", Fatal},
		{haproxy("SPOACME_CA", "https:dir"), "SPOACME_CA" + cfg + `"https:dir" is not a directory URL: write https://HOST/PATH`, Fatal},
		{haproxy("SPOACME_STORE", "/srv/certs"), "SPOACME_STORE" + cfg + `"/srv/certs" is a path: write file:///srv/certs`, Fatal},
		{haproxy("SPOACME_STORE", "consul://127.0.0.1:8500/le?zone=a"), "SPOACME_STORE" + cfg + `"consul://127.0.0.1:8500/le?zone=a": zone= is not an option of a Consul store: there is only dc=`, Fatal},
		{haproxy("SPOACME_STORE", "consul://me:pass@127.0.0.1:8500/le"), "SPOACME_STORE" + cfg + "credentials don't belong here: use CONSUL_HTTP_TOKEN_FILE in the sidecar's own environment", Fatal},
		{haproxy("SPOACME_STORE", "redis://x"), "SPOACME_STORE" + cfg + `"redis://x" is not a store: write file:///var/lib/spoacme, or consul://127.0.0.1:8500/le`, Fatal},
		{haproxy("SPOACME_STORE", "file://srv/x"), "SPOACME_STORE" + cfg + `"file://srv/x" names a host: write file:/// and the directory, with three slashes`, Fatal},
		{haproxy("SPOACME_STORE", "file:///srv/x?mode=1"), "SPOACME_STORE" + cfg + `"file:///srv/x?mode=1": a file store takes a plain path: write file:///var/lib/spoacme`, Fatal},
		{haproxy("SPOACME_SEAL", "none"), "SPOACME_SEAL" + cfg + `"none": use plain, or from-plain on the way back from it; without it, keys are sealed with SPOACME_FLEET_KEYS and SPOACME_ISSUER_KEYS`, Fatal},
		{haproxy("SPOACME_ROLE", "edg"), "SPOACME_ROLE" + cfg + `"edg" is not a role: did you mean edge?`, Fatal},
		{haproxy("SPOACME_AGENT", ":9765"), "SPOACME_AGENT" + cfg + `":9765" has no host: write 127.0.0.1:9765, or 0.0.0.0:9765 for all addresses`, Fatal},
		{haproxy("SPOACME_AGENT", "127.0.0.1"), "SPOACME_AGENT" + cfg + `"127.0.0.1" is not HOST:PORT: write an address such as 127.0.0.1:9765`, Fatal},
		{haproxy("SPOACME_AGENT", "127.0.0.1:99999"), "SPOACME_AGENT" + cfg + `"127.0.0.1:99999" is not HOST:PORT: write an address such as 127.0.0.1:9765`, Fatal},
		{haproxy("SPOACME_AGENT", "unix@agent.sock"), "SPOACME_AGENT" + cfg + `"unix@agent.sock" is not an absolute path: write unix@/run/spoacme/agent.sock`, Fatal},
		{haproxy("SPOACME_AGENT", "unix@/"+strings.Repeat("a", 107)), "SPOACME_AGENT" + cfg + `"unix@/` + strings.Repeat("a", 74) + `…" is too long for a unix socket (108 bytes, the limit is 107): choose a shorter path`, Fatal},
		{haproxy("SPOACME_NODE", "lb 1"), "SPOACME_NODE" + cfg + `name "lb 1": use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'`, Fatal},
		{haproxy("SPOACME_LOG", "trace"), "SPOACME_LOG" + cfg + `"trace" is not a level: write debug, info, warn or error`, Fatal},
		{haproxy("SPOACME_EMAIL", "a\nb@example.com"), "SPOACME_EMAIL" + cfg + "a line break or another control character: write it in one line", Fatal},
		{haproxy("SPOACME_EMAIL", "a\xff@example.com"), "SPOACME_EMAIL" + cfg + "not UTF-8: write the file as UTF-8, or names as xn--…", Fatal},
		{haproxy("SPOACME_EMAIL", strings.Repeat("a", 16385)), "SPOACME_EMAIL" + cfg + "16385 bytes, the limit is 16384: HAProxy shows no more; make it shorter", Fatal},
		{source(FromEnvironment, "SPOACME_EAB_KID", "x"), "SPOACME_EAB_KID from environment: external account binding needs both: set SPOACME_EAB_HMAC too, in the sidecar's own environment", Fatal},
		{source(FromEnvironment, "SPOACME_EAB_KID", "x", "SPOACME_EAB_HMAC", "!!"), "SPOACME_EAB_HMAC from environment: not a base64url key: copy it once more from the CA's page", Fatal},
	}
}

func badNames() []complaint {
	return []complaint{
		{haproxy("SPOACME_CRTLIST", "/x"), "SPOACME_CRTLIST" + cfg + "is not a setting: did you mean SPOACME_CRT_LIST?" + staleHint("SPOACME_CRTLIST"), Error},
		{haproxy("SPOACME_CERT", "shop"), "SPOACME_CERT" + cfg + "is not a setting: did you mean SPOACME_CERTS?" + staleHint("SPOACME_CERT"), Error},
		{source(FromEnvironment, "SPOACME_XYZZY", "1"), "SPOACME_XYZZY from environment: is not a setting: remove it, or see the list of settings in `spoacme run --help`", Error},
		{haproxy("SPOACME_SOCKET", "/x"), "SPOACME_SOCKET" + cfg + "has no effect in haproxy.cfg: give it as --socket or in the sidecar's own environment", Note},
		{haproxy("SPOACME_EAB_KID", "x"), "SPOACME_EAB_KID" + cfg + "has no effect in haproxy.cfg: give it in the sidecar's own environment", Note},
	}
}

func badCertificates() []complaint {
	long := strings.Repeat("x", 65)
	return []complaint{
		{haproxy("SPOACME_CERTS", "shop"), "SPOACME_CERT_shop" + cfg + "is not set, though SPOACME_CERTS names it: write it, or take shop out of SPOACME_CERTS", Error},
		{haproxy("SPOACME_CERT_shop", "a.example"), "SPOACME_CERTS" + cfg + "is not set, so SPOACME_CERT_shop and the like do not count: name the certificates in it, separated by commas", Error},
		{haproxy("SPOACME_CERTS", "shop,"), "SPOACME_CERTS" + cfg + "ends with a comma: words after a space may have been lost: write it without spaces, or in quotes", Fatal},
		{haproxy("SPOACME_CERTS", "a/b"), "SPOACME_CERTS" + cfg + `name "a/b": use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'`, Error},
		{haproxy("SPOACME_CERTS", "-a"), "SPOACME_CERTS" + cfg + `name "-a": use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'`, Error},
		{haproxy("SPOACME_CERTS", "a..b"), "SPOACME_CERTS" + cfg + `name "a..b": use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'`, Error},
		{haproxy("SPOACME_CERTS", long), "SPOACME_CERTS" + cfg + `name "` + long + `" has 65 characters, the limit is 64: shorten it`, Error},
		{haproxy("SPOACME_CERTS", "shop.RSA"), "SPOACME_CERTS" + cfg + `name "shop.RSA": HAProxy takes .rsa for a part of another certificate: choose another name`, Error},
		{haproxy("SPOACME_CERTS", "_others"), "SPOACME_CERTS" + cfg + `name "_others" is that of the statistics row that counts certificates: choose another name`, Error},
		{haproxy("SPOACME_CERTS", "shop.issuer"), "SPOACME_CERTS" + cfg + `name "shop.issuer": HAProxy takes .issuer for a part of another certificate: choose another name`, Error},
		{haproxy("SPOACME_CERTS", "shop,Shop", "SPOACME_CERT_shop", "a.example", "SPOACME_CERT_Shop", "b.example"),
			"SPOACME_CERTS" + cfg + "names shop and Shop differ in case only: rename one", Error},
		{haproxy("SPOACME_CERTS", "shop", "SPOACME_CERT_shop", "a.example", "SPOACME_CERT_old", "b.example"),
			"SPOACME_CERT_old" + cfg + "does not count, because SPOACME_CERTS does not name it: add it there, or remove it" + staleHint("SPOACME_CERT_old"), Note},
		{haproxy("SPOACME_CERTS", "shop", "SPOACME_CERT_shpo", "a.example"), "SPOACME_CERT_shop" + cfg + "is not set, though SPOACME_CERTS names it: did you mean SPOACME_CERT_shpo?", Error},
		{haproxy("SPOACME_CERTS", "shop", "SPOACME_CERT_shop", "https://a.example/"), "SPOACME_CERT_shop" + cfg + `"https://a.example/" is a URL: write the name alone: a.example`, Error},
	}
}

func secrets() []complaint {
	return []complaint{
		{haproxy("CONSUL_HTTP_TOKEN", "s3cret"), "CONSUL_HTTP_TOKEN" + cfg + ourSecret, Error},
		{haproxy("SPOACME_EAB_HMAC", "s3cret"), "SPOACME_EAB_HMAC" + cfg + ourSecret, Error},
		{haproxy("AWS_SECRET_ACCESS_KEY", "s3cret"), "AWS_SECRET_ACCESS_KEY" + cfg + ourSecret, Error},
		{haproxy("CF_DNS_API_TOKEN", "s3cret"), "CF_DNS_API_TOKEN" + cfg + ourSecret, Error},
		{haproxy("LEGO_EAB_HMAC", "s3cret"), "LEGO_EAB_HMAC" + cfg + ourSecret, Error},
		{haproxy("STATS_PASSWORD", "s3cret"), "STATS_PASSWORD" + cfg + "looks like a secret, and everybody who reads the stats socket can see it: " +
			"if it is meant for the sidecar, move it to the sidecar's own environment", Note},
	}
}

const ourSecret = "is a secret that everybody who reads the stats socket can see: move it to the sidecar's own environment, and make a new one"

// A refused value is neither replaced by the next source nor by the default, and everything else is kept.
func TestRefusedIsLeftOut(t *testing.T) {
	s, problems := Load(
		source(FromEnvironment, "SPOACME_CA", "letsencript-stagging", "SPOACME_STORE", "nonsense", "SPOACME_EAB_HMAC", ""),
		haproxy("SPOACME_CA", "letsencrypt", "SPOACME_EMAIL", "ops@example.com",
			"SPOACME_CERTS", "good,bad,gone", "SPOACME_CERT_good", "a.example", "SPOACME_CERT_bad", "a_b.example"),
	)
	if s.CAs != nil || s.Store != "" || s.Email != "ops@example.com" {
		t.Errorf("%+v", s)
	}
	if len(s.Certificates) != 1 || s.Certificates["good"].Domains[0] != "a.example" || !reflect.DeepEqual(s.Refused, []string{"bad", "gone"}) {
		t.Errorf("%v, refused %v", s.Certificates, s.Refused)
	}
	if len(problems) != 4 {
		t.Errorf("%d problems: %v", len(problems), problems)
	}
}

func TestOurs(t *testing.T) {
	got := Ours(map[string]string{"PATH": "/bin", "SPOACME_CERTS": "a", "SPOACME_CERT_api_token": "a.example", "SPOACME_EAB_HMAC": "x", "CONSUL_HTTP_TOKEN": "x"})
	want := map[string]string{"SPOACME_CERTS": "a", "SPOACME_CERT_api_token": "a.example"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

// Every entry of the manual can be written as it says, and every flag is a flag.
func TestDescribe(t *testing.T) {
	flags := make(map[string]bool)
	for _, v := range Describe() {
		if v.Meaning == "" || !strings.HasPrefix(v.Name, prefix) {
			t.Errorf("%+v", v)
		}
		if v.Flag != "" && (flags[v.Flag] || !strings.HasPrefix(v.Flag, "--")) {
			t.Errorf("flag %q", v.Flag)
		}
		flags[v.Flag] = true
		if v.Default == "" {
			continue
		}
		if _, problems := Load(source(FromEnvironment, v.Name, v.Default)); len(problems) > 0 {
			t.Errorf("default of %s: %v", v.Name, problems)
		}
	}
	if flags["--eab-hmac"] {
		t.Error("a secret has a flag")
	}
}
