package integration

import (
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestInput reads settings out of haproxy.cfg that can't be right. Each is named with what to do, nothing of it reaches
// the CA, and the good certificate is issued.
func TestInput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 64)
	var hundredOne []string
	for i := range 101 {
		hundredOne = append(hundredOne, "n"+strings.Repeat("x", i%3)+string(rune('a'+i%26))+string(rune('a'+i/26))+".example.com")
	}
	bad := map[string]struct{ value, message string }{
		"underscore": {"a_b.example.com", `"a_b.example.com": an underscore is not possible in the name of a certificate: remove the name`},
		"label":      {long + ".example.com", `has a label of 64 characters, the limit is 63: shorten it`},
		"long":       {strings.Repeat("abcdefg.", 31) + "abc.de", `has 254 characters, the limit is 253: shorten it`},
		"twice":      {"*.*.example.com", `"*.*.example.com" has two wildcards: only one is possible, as the first label`},
		"part":       {"*foo.example.com", `"*foo.example.com": a wildcard is a whole label, the first one: write *.example.com`},
		"url":        {"https://shop.example.com/x", `"https://shop.example.com/x" is a URL: write the name alone: shop.example.com`},
		"port":       {"shop.example.com:443", `"shop.example.com:443" has a port: write the name alone: shop.example.com`},
		"ip":         {"192.0.2.1", `"192.0.2.1" is an IP address: certificates are for names`},
		"comma":      {"shop.example.com,", `ends with a comma: words after a space may have been lost`},
		"many":       {strings.Join(hundredOne, ","), `101 names, a certificate holds 100: split it in two`},
		"wild":       {"*.example.com", `"*.example.com" is a wildcard, and a CA gives those for challenge=dns-01 only`},
		"option":     {"shop.example.com,chalenge=http-01", `chalenge= is not an option: did you mean challenge?`},
	}
	settings := map[string]string{
		"SPOACME_CERT_good":  "Good.Example.COM.,good.example.com,bücher.example",
		"SPOACME_CERT_stray": "stray.example.com",
		"SPOACME_MAIL":       "ops@example.com",
	}
	names := []string{"good", "a..b", "x/../y", "-x", "shop.rsa", "GOOD", "unset"}
	for name, b := range bad {
		names = append(names, name)
		settings["SPOACME_CERT_"+name] = b.value
	}
	settings["SPOACME_CERTS"] = strings.Join(names, ",")
	settings["SPOACME_CERT_shop"] = ""
	c := newScene(t, sceneOptions{haproxy: fixture.HAProxyOptions{Settings: settings, Edit: quickChecks}})
	c.await(settleTimeout, func() error { return c.serves("good.example.com") })
	if err := serving(t, c.h, "xn--bcher-kva.example").Leaf().VerifyHostname("xn--bcher-kva.example"); err != nil {
		t.Error(err)
	}
	log := strings.ReplaceAll(c.s.Log(), `\"`, `"`)
	for name, b := range bad {
		expect(t, log, "SPOACME_CERT_"+name+" from haproxy.cfg (setenv): ", b.message)
	}
	for _, words := range [][]string{
		{"SPOACME_CERTS", `name "a..b"`}, {"SPOACME_CERTS", `name "x/../y"`}, {"SPOACME_CERTS", `name "-x"`},
		{"SPOACME_CERTS", `HAProxy takes .rsa for a part of another certificate: choose another name`},
		{"SPOACME_CERTS", "differ in case only: rename one"},
		{"SPOACME_CERT_unset", "is not set, though SPOACME_CERTS names it: write it, or take unset out of SPOACME_CERTS"},
		{"SPOACME_CERT_stray", "does not count, because SPOACME_CERTS does not name it"},
		{"SPOACME_MAIL", "is not a setting: did you mean SPOACME_EMAIL?"},
	} {
		expect(t, log, words...)
	}
	ready, err := c.s.Get("/readyz")
	must(t, err)
	t.Log(ready)
	expect(t, ready, "FAIL settings: SPOACME_", "more; see 'spoacme check'")
	for _, o := range c.ca.Calls("order") {
		if o.Name() != "good.example.com" {
			t.Errorf("an order for %v", o.Names)
		}
	}
	if n := len(c.ca.Calls("order")); n != 1 {
		t.Errorf("%d orders", n)
	}
}

// expect demands a line that holds all the words.
func expect(t *testing.T, text string, words ...string) {
	t.Helper()
	for line := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return
		}
	}
	t.Errorf("no line holds %q", words)
}
