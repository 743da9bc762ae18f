package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestWrongCertificates: whatever the CA hands out, what can't be served is not swapped in, and what only looks odd is
// brought into order.
func TestWrongCertificates(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	key := newKey(t)
	day := 24 * time.Hour
	wrong := map[string]struct {
		change  func(chain []byte) []byte
		message string // empty: it is taken
	}{
		"otherkey": {func(c []byte) []byte { return f.forge(c, func(t *x509.Certificate) { t.PublicKey = key.Public() }) }, "key"},
		"noname": {func(c []byte) []byte {
			return f.forge(c, func(t *x509.Certificate) { t.DNSNames = []string{"x.example"} })
		}, "it does not hold noname.example.com"},
		"expired": {func(c []byte) []byte {
			return f.forge(c, func(t *x509.Certificate) { t.NotBefore, t.NotAfter = t.NotBefore.Add(-3*day), time.Now().Add(-day) })
		}, "it expired at"},
		"early": {func(c []byte) []byte {
			return f.forge(c, func(t *x509.Certificate) { t.NotBefore = time.Now().Add(day) })
		}, "it is not valid before"},
		"leafonly":  {func(c []byte) []byte { return chainOf(certificates(c)[0]) }, "the issuer's certificate is missing"},
		"empty":     {func([]byte) []byte { return []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n") }, "certificate"},
		"unordered": {func(c []byte) []byte { all := certificates(c); slices.Reverse(all); return chainOf(all...) }, ""},
		"crlf":      {func(c []byte) []byte { return bytes.ReplaceAll(c, []byte("\n"), []byte("\r\n")) }, ""},
		"blank": {func(c []byte) []byte {
			return bytes.ReplaceAll(c, []byte("-----BEGIN"), []byte("\n\nsubject=x\n-----BEGIN"))
		}, ""},
	}
	c := newScene(t, sceneOptions{bare: true, pebble: fixture.PebbleOptions{ChainLength: 2}})
	names := slices.Sorted(maps.Keys(wrong))
	before := map[string]string{}
	for _, name := range names {
		c.command("issue", "--no-wait", name, name+".example.com")
	}
	for _, name := range names {
		c.await(20*time.Second, func() error { return c.serves(name + ".example.com") })
		before[name] = serving(t, c.h, name+".example.com").Serial
	}
	c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
		a := pass()
		if call.Kind == "certificate" {
			name, _, _ := strings.Cut(call.Name(), ".")
			a.Body = wrong[name].change(a.Body)
		}
		return a
	})
	for _, name := range names {
		c.command("renew", "--no-wait", name)
	}
	for _, name := range names {
		domain := name + ".example.com"
		if wrong[name].message == "" {
			c.await(20*time.Second, func() error { return c.serves(domain) })
			if n := len(serving(t, c.h, domain).Chain); n != 3 {
				t.Errorf("%s: a chain of %d is served", name, n)
			}
			if b, err := os.ReadFile(filepath.Join(c.crtDir(), name+".pem")); err != nil || bytes.Contains(b, []byte("\n\n")) || bytes.Contains(b, []byte("\r")) {
				t.Errorf("%s: %v\n%s", name, err, "its file is not in order")
			}
			continue
		}
		c.trouble(name, wrong[name].message)
		if err := c.servesSerial(domain, before[name]); err != nil {
			t.Error(err)
		}
	}
	c.restarts()
}

// restarts demands that HAProxy starts with the files as they are.
func (c *scene) restarts() {
	c.t.Helper()
	if _, err := c.h.Check(c.t.Context()); err != nil {
		c.t.Error(err)
	}
}

func certificates(chain []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for {
		block, rest := pem.Decode(chain)
		if block == nil {
			return all
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
		chain = rest
	}
}

const pausedURL = "https://portal.letsencrypt.example/sfe/v1/unpause?jwt=eyJhbGciOiJIUzI1NiJ9." +
	"eyJpc3MiOiJXRkUiLCJzdWIiOiIxMjM0NTY3ODkwIiwiYXVkIjoiU0ZFIFVucGF1c2UiLCJleHAiOjE3Mjc4OTg5OTgsImlhdCI6MTcyNjY4OTM5OCwidiI6InYxIn0." +
	"x5rGQvC5J_rZ8h1V9Xx2l8cEw2O3k8bYf0jQ7m1TzqA"

// TestRefusals: what the CA refuses is refused for that certificate, said in its words, and not asked again too soon, also
// not by the next process. Others go on.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	refused := map[string]struct {
		kind   string // of the request
		answer fixture.Answer
		words  []string
		least  time.Duration // until the next try
	}{
		"limited": {"order", problem(429, "rateLimited", "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s", "Retry-After", "3600"),
			[]string{"too many certificates (5)"}, 59 * time.Minute},
		"paused": {"order", problem(429, "rateLimited", "Your account is temporarily prevented from requesting certificates for paused.example.com and possibly others. Please visit: "+pausedURL, "Retry-After", "86400"),
			[]string{pausedURL}, 23 * time.Hour},
		"caa":      {"finalize", problem(403, "caa", `CAA record for caa.example.com prevents issuance`), []string{"CAA record for caa.example.com"}, 2 * time.Hour},
		"rejected": {"order", problem(400, "rejectedIdentifier", "The ACME server refuses to issue a certificate for this domain name, because it is forbidden by policy"), []string{"forbidden by policy"}, 2 * time.Hour},
	}
	c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
		name, _, _ := strings.Cut(call.Name(), ".")
		if r, ok := refused[name]; ok && call.Kind == r.kind {
			return nonce(r.answer)
		}
		return pass()
	})
	names := slices.Sorted(maps.Keys(refused))
	for _, name := range append(names, "fine") {
		c.command("issue", "--no-wait", name, name+".example.com")
	}
	c.await(20*time.Second, func() error { return c.serves("fine.example.com") })
	for _, name := range names {
		c.trouble(name, refused[name].words...)
		v, err := c.certificate(name)
		if wait := time.Until(v.NextAttempt); err != nil || wait < refused[name].least {
			t.Errorf("%s: tried again in %v: %v", name, wait, err)
		}
	}
	out, err := c.s.Run(t.Context(), "status")
	t.Logf("status: %v\n%s", err, out)

	asked := len(c.ca.Calls("order"))
	c.s.Kill9()
	must(t, c.s.Restart())
	c.issue("later", "later.example.com")
	c.s.Pause()
	must(t, c.s.Restart())
	c.issue("last", "last.example.com")
	if n := len(c.ca.Calls("order")) - asked; n != 2 {
		t.Errorf("%d orders after two restarts, want those of the two new certificates", n)
	}
	for _, name := range names {
		c.trouble(name, refused[name].words...)
	}
}

// TestPause: while the CA wants no orders from this account, a command that waits for one says so, and until when.
func TestPause(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	const detail = "too many new orders (300) from this account in the last 3h0m0s"
	c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
		if call.Kind == "order" {
			return nonce(problem(429, "rateLimited", detail, "Retry-After", "3600"))
		}
		return pass()
	})
	c.command("issue", "--no-wait", "one", "one.example.com")
	c.trouble("one", detail)
	until := time.Now().Add(time.Hour).Format("2006-01-02 15:")
	out, err := c.s.Run(t.Context(), "issue", "--timeout", "3s", "two", "two.example.com")
	if err == nil || !strings.Contains(out, "two: waiting until "+until) || !strings.Contains(out, detail) || !strings.Contains(out, "not done after 3s") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
	if n := len(c.ca.Calls("order")); n != 1 {
		t.Errorf("%d orders in spite of the pause", n)
	}
}

// TestUnusableCA: an authority that is down or talks nonsense is asked a bounded number of times, and the message says
// what is wrong with it.
func TestUnusableCA(t *testing.T) {
	t.Parallel()
	html := fixture.Answer{Status: 200, Header: http.Header{"Content-Type": {"text/html"}}, Body: []byte("<html><body>Sign in to the hotel's network</body></html>")}
	always := func(a fixture.Answer) fixture.Meddle {
		return func(fixture.Call, func() fixture.Answer) fixture.Answer { return a }
	}
	directory := func(change func(meta map[string]any)) fixture.Meddle {
		return func(c fixture.Call, pass func() fixture.Answer) fixture.Answer {
			a := pass()
			if c.Kind == "directory" {
				var d map[string]any
				_ = json.Unmarshal(a.Body, &d)
				meta, _ := d["meta"].(map[string]any)
				change(meta)
				a.Body, _ = json.Marshal(d)
			}
			return a
		}
	}
	cases := []struct {
		name   string
		meddle fixture.Meddle
		args   []string
		env    []string
		words  []string
	}{
		{name: "HTML", meddle: always(html), words: []string{"an HTML page instead of an ACME answer"}},
		{name: "500", meddle: always(problem(500, "serverInternal", "Internal error")), words: []string{"Internal error"}},
		{name: "503", meddle: always(fixture.Answer{Status: 503, Header: http.Header{}, Body: []byte("upstream connect error")}), words: []string{"503"}},
		{name: "404", meddle: always(fixture.Answer{Status: 404, Header: http.Header{}}), words: []string{"404"}},
		{name: "cut", meddle: always(fixture.Answer{}), words: []string{"reach the CA"}},
		{name: "truncated", meddle: func(_ fixture.Call, pass func() fixture.Answer) fixture.Answer {
			a := pass()
			a.Body = a.Body[:len(a.Body)/2]
			return a
		}, words: []string{"JSON that ends or breaks in the middle"}},
		{name: "badNonce", meddle: func(c fixture.Call, pass func() fixture.Answer) fixture.Answer {
			if a := pass(); c.Kind == "directory" || c.Kind == "nonce" {
				return a
			}
			return nonce(problem(400, "badNonce", "JWS has an invalid anti-replay nonce"))
		}, words: []string{"badNonce"}},
		{name: "EAB", meddle: directory(func(meta map[string]any) { meta["externalAccountRequired"] = true }), words: []string{"externalAccountRequired", "SPOACME_EAB_KID"}},
		{name: "TLS", env: []string{"SPOACME_CA_ROOTS="}, words: []string{"certificate", "SPOACME_CA_ROOTS"}},
		{name: "DNS", args: []string{"--ca", "https://acme.nowhere.invalid/dir"}, words: []string{"acme.nowhere.invalid"}},
		{name: "refused", args: []string{"--ca", "https://127.0.0.1:1/dir"}, words: []string{"connection refused"}},
	}
	c := newScene(t, sceneOptions{bare: true, idle: true})
	for _, test := range cases {
		c.ca.Meddle(test.meddle)
		before := len(c.ca.Calls())
		dir := t.TempDir()
		c.start(fixture.SidecarOptions{Args: test.args, Env: append([]string{"SPOACME_STORE=file://" + filepath.Join(dir, "store")}, test.env...)})
		c.command("issue", "--no-wait", "shop", "shop.example.com")
		said := c.trouble("shop", test.words...)
		if strings.Contains(said, "\n") || len(said) > 600 {
			t.Errorf("%s: a message of %d bytes", test.name, len(said))
		}
		if n := len(c.ca.Calls()) - before; n > 20 {
			t.Errorf("%s: %d requests", test.name, n)
		}
		v, err := c.certificate("shop")
		if wait := time.Until(v.NextAttempt); err != nil || wait < 30*time.Second || wait > 15*time.Minute {
			t.Errorf("%s: tried again in %v: %v", test.name, wait, err)
		}
		c.s.Pause()
	}
}

// TestOneBadNameOfHundred: the name and the CA's words are shown, and other certificates are not held up.
func TestOneBadNameOfHundred(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("n%d.example.com", i))
	}
	must(t, c.p.SetDNS(t.Context(), "n57.example.com"))
	c.command(append([]string{"issue", "--no-wait", "hundred"}, names...)...)
	c.issue("other", "other.example.com")
	said := c.trouble("hundred", "validate n57.example.com", "could not resolve")
	if strings.Contains(said, "n56.") {
		t.Errorf("another name is blamed: %s", said)
	}
	out, err := c.s.Run(t.Context(), "issue", "hundred2", "n57.example.com", "good.example.com")
	if err == nil || !strings.Contains(out, "n57.example.com") {
		t.Errorf("issue says: %v\n%s", err, out)
	}
	t.Logf("issue says:\n%s", out)
}

// TestAccountUnknown: the CA has forgotten the account. Nothing that is served changes, no new account is made in silence,
// and the message says what to do.
func TestAccountUnknown(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	c.issue("shop", "shop.example.com")
	before := serving(t, c.h, "shop.example.com").Serial
	must(t, c.p.Restart())
	made := len(c.ca.Calls("account"))
	c.command("renew", "--no-wait", "shop")
	c.trouble("shop", "account", "--new-account")
	if n := len(c.ca.Calls("account")); n != made {
		t.Errorf("%d requests for an account", n-made)
	}
	if err := c.servesSerial("shop.example.com", before); err != nil {
		t.Error(err)
	}
	c.s.Pause()
	c.start(fixture.SidecarOptions{Args: []string{"--new-account"}, Dir: filepath.Dir(c.s.State())})
	c.command("renew", "--no-wait", "shop")
	c.await(20*time.Second, func() error {
		if serial := serving(t, c.h, "shop.example.com").Serial; serial == before {
			return errors.New("not renewed with a new account")
		}
		return nil
	})
}
