package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestKilledAnyTime kills the sidecar after every delay from the moment on at which a certificate is asked for, in small
// steps through a first certificate and through its renewal.
func TestKilledAnyTime(t *testing.T) {
	t.Parallel()
	const step, end = 14 * time.Millisecond, 440 * time.Millisecond
	c := newScene(t, sceneOptions{bare: true})
	var domains []string
	kills, nudges := 0, 0
	for delay := time.Duration(0); delay < end; delay += step {
		name := fmt.Sprintf("after%d", delay.Milliseconds())
		domain := name + ".example.com"
		nudges += c.killAfter(delay, 1, name, "issue", "--no-wait", name, domain)
		nudges += c.killAfter(delay, 2, name, "renew", "--no-wait", name)
		kills += 2
		domains = append(domains, domain)
	}
	c.restartsTheSame(domains...)
	t.Logf("%d kills, %d of them while the CA was asking for a token", kills, nudges)
}

// killAfter runs a command and kills the sidecar after a delay, starts it again, and demands the given number of
// certificates in the end. It returns 1 when the sidecar was killed while the CA was asking for a token. A new order is
// due after a minute then, which this test does not wait for: it runs the command once more.
func (c *scene) killAfter(delay time.Duration, certificates int, name string, command ...string) (nudges int) {
	c.t.Helper()
	c.command(command...)
	<-time.After(delay)
	c.s.Kill9()
	must(c.t, c.s.Restart())
	domain := name + ".example.com"
	c.await(30*time.Second, func() error {
		if len(c.ca.IssuedFor(c.p, domain)) >= certificates {
			return nil
		}
		v, err := c.certificate(name)
		if err == nil && strings.Contains(v.Error, "validate "+domain) && nudges == 0 {
			c.command(command...)
			nudges++
		}
		return fmt.Errorf("%s: not issued: %s (%w)", name, v.Error, err)
	})
	c.converges(domain, certificates)
	if c.t.Failed() {
		c.t.Fatalf("killed after %v", delay)
	}
	return nudges
}
