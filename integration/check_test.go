package integration

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/check"
	"github.com/spoacme/spoacme/integration/fixture"
)

// verdict is what `spoacme check --json` prints.
type verdict struct {
	OK       bool            `json:"ok"`
	Findings []check.Finding `json:"findings"`
}

func (v verdict) String() string {
	var b strings.Builder
	for _, f := range v.Findings {
		b.WriteString(string(f.Level) + " " + f.Topic + ": " + f.Message + "\n")
	}
	return b.String()
}

// finds reports an error unless there is such a finding, with all the words in its message.
func (v verdict) finds(t *testing.T, level check.Level, topic string, words ...string) {
	t.Helper()
	for _, f := range v.Findings {
		if f.Level != level || f.Topic != topic {
			continue
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(f.Message, w)
		}
		if all {
			return
		}
	}
	t.Errorf("no %s %s with %q in\n%s", level, topic, words, v)
}

// runCheck runs the command beside the sidecar, or without it while that is paused.
func runCheck(t *testing.T, h *fixture.HAProxy, s *fixture.Sidecar, args ...string) verdict {
	t.Helper()
	args = append([]string{"check", "--json", "--socket", h.Socket(), "--http-frontend", h.HTTP.Addr()}, args...)
	out, err := s.Run(t.Context(), args...)
	return parseVerdict(t, out, err)
}

func parseVerdict(t *testing.T, out string, err error) verdict {
	t.Helper()
	var v verdict
	if jsonErr := json.Unmarshal([]byte(out), &v); jsonErr != nil {
		t.Fatalf("check: %v, %v:\n%s", err, jsonErr, out)
	}
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	if v.OK != (code == 0) || v.OK == check.Failed(v.Findings) || code > 1 {
		t.Errorf("exit code %d with\n%s", code, v)
	}
	if strings.Contains(out, "s3cret") {
		t.Errorf("a secret is shown:\n%s", out)
	}
	return v
}

// beside starts a HAProxy, and a sidecar that is ended at once: for its environment.
func beside(t *testing.T, opts fixture.HAProxyOptions) (*fixture.HAProxy, *fixture.Sidecar) {
	t.Helper()
	h := fixture.StartHAProxy(t, opts)
	s, err := fixture.LaunchSidecar(fixture.SidecarOptions{HAProxy: h, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.Pause()
	return h, s
}

// With haproxy-conf as it is there is nothing to say.
func TestCheckGood(t *testing.T) {
	eachVersion(t, func(t *testing.T, version string) {
		for _, config := range []string{"haproxy.cfg", "snippet.cfg"} {
			h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version, Config: filepath.Join(fixture.Root(), "haproxy-conf", config)})
			p := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: h.HTTP.Number})
			if err := h.Set("SPOACME_CA", p.Directory()); err != nil {
				t.Fatal(err)
			}
			if err := h.Restart(); err != nil {
				t.Fatal(err)
			}
			s := fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h, Pebble: p, Env: []string{"SPOACME_PROBE=" + h.HTTPS.Addr()}})
			err := fixture.Await(t.Context(), 20*time.Second, func() error {
				out, err := s.Run(t.Context(), "status")
				if err == nil && !strings.Contains(out, "ok") {
					err = errors.New(out)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			awaitAgent(t, h, "UP")
			v := runCheck(t, h, s)
			for _, f := range v.Findings {
				if f.Level != check.OK {
					t.Errorf("%s: %+v", config, f)
				}
			}
			v.finds(t, check.OK, "tls", "shop: clients that ask "+h.HTTPS.Addr()+" for shop.example.com get what is stored")
			v.finds(t, check.OK, "challenge", "the sidecar's answer came back")

			s.Pause()
			if v = runCheck(t, h, s); !v.OK {
				t.Errorf("%s, without the sidecar:\n%s", config, v)
			}
			v.finds(t, check.Note, "sidecar", "start 'spoacme run'")
			v.finds(t, check.OK, "address", "SPOACME_AGENT", "is free")
		}
	})
}

// The table of what users get wrong in haproxy.cfg, found before a sidecar runs.
func TestCheckConfiguration(t *testing.T) {
	const filter = "    filter spoe engine acme config "
	replace := func(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }
	tests := []struct {
		name, version string
		edit          func(string) string
		set           map[string]string
		args          []string
		level         check.Level
		topic         string
		words         []string
	}{
		{name: "not admin", version: "2.2", edit: replace("level admin", "level operator"),
			level: check.Fail, topic: "socket", words: []string{"permission denied: write `level admin`"}},
		{name: "level user", version: "3.0", edit: replace("level admin", "level user"),
			level: check.Fail, topic: "socket", words: []string{"permission denied: write `level admin`"}},
		{name: "misspelt", version: "3.2", set: map[string]string{"SPOACME_EMIAL": "x@example.com"},
			level: check.Fail, topic: "settings", words: []string{"did you mean SPOACME_EMAIL?"}},
		{name: "unquoted", version: "2.6", set: map[string]string{"SPOACME_CERT_shop": "a.example.com, b.example.com"},
			level: check.Fail, topic: "setenv", words: []string{"SPOACME_CERT_shop has several words without quotes"}},
		{name: "unquoted, what is left", version: "2.2", set: map[string]string{"SPOACME_CERT_shop": "a.example.com, b.example.com"},
			level: check.Fail, topic: "settings", words: []string{"words after a space may have been lost"}},
		{name: "secret", version: "2.6", set: map[string]string{"CONSUL_HTTP_TOKEN": "s3cret"},
			level: check.Fail, topic: "settings", words: []string{"CONSUL_HTTP_TOKEN", "is a secret that everybody who reads the stats socket can see"}},
		{name: "wildcard", version: "3.0", set: map[string]string{"SPOACME_CERT_shop": "*.example.com"},
			level: check.Fail, topic: "settings", words: []string{`"*.example.com" is a wildcard`, "dns-01"}},
		{name: "no filter", version: "2.2", edit: func(s string) string {
			kept := ""
			for l := range strings.Lines(s) {
				if !strings.HasPrefix(l, filter) && !strings.Contains(l, "send-spoe-group") {
					kept += l
				}
			}
			return kept
		}, level: check.Fail, topic: "frontend", words: []string{"http has no `filter spoe` line for backend acme_agent"}},
		{name: "redirect above", version: "2.6", edit: replace(filter, "    http-request redirect scheme https code 301\n"+filter),
			level: check.Fail, topic: "frontend", words: []string{"`http-request redirect`", "stands above the challenge rules"}},
		{name: "redirect above, unless TLS", version: "3.0", edit: replace(filter, "    http-request redirect scheme https unless { ssl_fc }\n"+filter),
			level: check.Fail, topic: "frontend", words: []string{"stands above the challenge rules"}},
		{name: "use_backend above", version: "3.2", edit: replace(filter, "    use_backend site if { path /x }\n"+filter),
			level: check.Note, topic: "frontend", words: []string{"`use_backend`", "warns at every start"}},
		{name: "no crt-list", version: "3.2", edit: func(s string) string {
			return regexp.MustCompile(`ssl strict-sni crt-list (\S+)/spoacme/crt-list`).ReplaceAllString(s, "ssl crt $1/default.pem")
		},
			level: check.Fail, topic: "crt-list", words: []string{"neither a crt-list nor a certificate directory"}},
		{name: "no such backend", version: "2.2", args: []string{"--agent-backend", "nosuch"},
			level: check.Fail, topic: "agent", words: []string{"HAProxy has no backend nosuch"}},
		{name: "no rows", version: "2.6", args: []string{"--rows-backend", "nosuch"},
			level: check.Note, topic: "rows", words: []string{"no backend nosuch"}},
		{name: "rows on 2.2", version: "2.2", level: check.OK, topic: "rows", words: []string{"2.2 can't add a row"}},
		{name: "elsewhere", version: "3.0", args: []string{"--agent", "127.0.0.1:1"},
			level: check.Fail, topic: "agent", words: []string{"leads to 127.0.0.1:", "the sidecar listens on 127.0.0.1:1"}},
		{name: "CA", version: "3.2", level: check.Fail, topic: "ca", words: []string{"https://127.0.0.1:1/dir", "connection refused"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, s := beside(t, fixture.HAProxyOptions{Version: test.version, Edit: test.edit, Settings: test.set})
			runCheck(t, h, s, test.args...).finds(t, test.level, test.topic, test.words...)
		})
	}
}

// What a reload does not change is named, on the versions that keep it.
func TestCheckStaleSettings(t *testing.T) {
	eachVersion(t, func(t *testing.T, version string) {
		h, s := beside(t, fixture.HAProxyOptions{Version: version, Settings: map[string]string{"SPOACME_LOG": "debug"}})
		if err := h.Set("SPOACME_EMAIL", "new@example.com"); err != nil {
			t.Fatal(err)
		}
		if err := h.Set("SPOACME_NODE", "lb1"); err != nil {
			t.Fatal(err)
		}
		v := runCheck(t, h, s)
		v.finds(t, check.Fail, "setenv", `SPOACME_EMAIL is "new@example.com" there, but "ops@example.com" is in force: reload HAProxy`)
		v.finds(t, check.Fail, "setenv", "SPOACME_NODE is not in force yet: reload HAProxy")
		if err := h.Unset("SPOACME_LOG"); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		v = runCheck(t, h, s)
		if version == "3.2" {
			v.finds(t, check.OK, "setenv", "is what is in force")
			return
		}
		v.finds(t, check.Fail, "setenv", "SPOACME_LOG is in force, but not in "+filepath.Join(h.ConfigDir(), "haproxy.cfg"), "unsetenv SPOACME_LOG")
		if err := h.Edit(func(s string) string { return strings.Replace(s, "global\n", "global\n    unsetenv SPOACME_LOG\n", 1) }); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		runCheck(t, h, s).finds(t, check.OK, "setenv", "is what is in force")
	})
}

// What only a trial can tell is tried: the file looks right, another file's rule comes first.
func TestCheckChallengeIsTried(t *testing.T) {
	h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: "3.0", Edit: func(s string) string {
		return strings.Replace(s, "    filter spoe", "    http-request redirect location https://x.example.com/ if { method GET }\n    filter spoe", 1)
	}})
	s := fixture.StartSidecar(t, fixture.SidecarOptions{HAProxy: h})
	awaitAgent(t, h, "UP")
	v := runCheck(t, h, s)
	v.finds(t, check.Note, "frontend", "if its condition can hold for a challenge")
	v.finds(t, check.Fail, "challenge", "HAProxy answered 302 to https://x.example.com/, not what the sidecar says")
	// Without a file it is the trial alone that tells.
	v = runCheck(t, h, s, "-f", "/nonexistent/haproxy.cfg")
	v.finds(t, check.Fail, "config", "read /nonexistent/haproxy.cfg")
	v.finds(t, check.Fail, "challenge", "HAProxy answered 302")
}

// The folder of the certificates, and the lists.
func TestCheckPlace(t *testing.T) {
	t.Run("files", func(t *testing.T) {
		h, s := beside(t, fixture.HAProxyOptions{Version: "3.0"})
		file := addCertificateFile(t, h, "shop", "shop.example.com")
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		v := runCheck(t, h, s)
		v.finds(t, check.Fail, "crt-list", "everybody can read the private key in "+file)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		runCheck(t, h, s).finds(t, check.Fail, "crt-list", "names "+file+", which does not exist")
		if err := os.Remove(h.CrtList()); err != nil {
			t.Fatal(err)
		}
		runCheck(t, h, s).finds(t, check.Fail, "crt-list", h.CrtList()+", which HAProxy has loaded, is gone")
	})
	t.Run("several lists and no default", func(t *testing.T) {
		h, s := beside(t, fixture.HAProxyOptions{Version: "2.6"})
		addCertificateFile(t, h, "shop", "shop.example.com")
		second := filepath.Join(h.ConfigDir(), "second-list")
		reload := func(from, to string) {
			t.Helper()
			if err := h.Edit(func(s string) string { return strings.ReplaceAll(s, from, to) }); err != nil {
				t.Fatal(err)
			}
			if err := h.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		reload(" strict-sni", "")
		runCheck(t, h, s).finds(t, check.Note, "default", "frontend https has neither strict-sni nor a default certificate")
		if err := os.WriteFile(second, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		reload("ssl crt-list "+h.CrtList(), "ssl crt-list "+h.CrtList()+" crt-list "+second)
		runCheck(t, h, s).finds(t, check.Fail, "crt-list", "several crt-lists", h.CrtList(), second, "SPOACME_CRT_LIST")
		runCheck(t, h, s, "--crt-list", h.CrtList()).finds(t, check.OK, "crt-list", h.CrtList()+" names 1 certificate")
	})
	t.Run("directory", func(t *testing.T) { checkDirectory(t) })
}

func checkDirectory(t *testing.T) {
	for _, version := range []string{"2.2", "3.2"} {
		h, s := beside(t, fixture.HAProxyOptions{Version: version})
		addCertificateFile(t, h, "shop", "shop.example.com")
		dir := filepath.Join(h.ConfigDir(), "certs")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(filepath.Dir(h.CrtList()), "shop.pem"), filepath.Join(dir, "shop.pem")); err != nil {
			t.Fatal(err)
		}
		if err := h.Edit(func(s string) string { return strings.ReplaceAll(s, "crt-list "+h.CrtList(), "crt "+dir) }); err != nil {
			t.Fatal(err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{".hidden", "README", "sub/file"} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		v := runCheck(t, h, s)
		v.finds(t, check.Fail, "crt-list", "README in the certificate directory is no certificate")
		if got := strings.Contains(v.String(), ".hidden"); got != (version == "2.2") {
			t.Errorf("%s: a dotfile is reported: %v", version, got)
		}
		if strings.Contains(v.String(), "sub in the") {
			t.Errorf("a subdirectory is reported:\n%s", v)
		}
		if _, err := h.Check(t.Context()); err == nil {
			t.Error("HAProxy would start with a stray file")
		}
	}
}
