package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
)

// crashPoint is a moment in the life of a certificate. arm lets the trap spring at that moment.
type crashPoint struct {
	name string
	arm  func(c *scene, t *trap)
}

// atRequest kills when the CA has got a request that fits, before it works on it.
func atRequest(fits func(fixture.Call) bool) func(*scene, *trap) {
	return func(c *scene, t *trap) {
		c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
			if fits(call) && t.spring() {
				return fixture.Answer{}
			}
			return pass()
		})
	}
}

// afterRequest kills when the CA has worked on a request that fits, before the answer arrives.
func afterRequest(fits func(fixture.Call, fixture.Answer) bool) func(*scene, *trap) {
	return func(c *scene, t *trap) {
		c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
			a := pass()
			if fits(call, a) && t.spring() {
				return fixture.Answer{}
			}
			return a
		})
	}
}

func kind(k string) func(fixture.Call) bool {
	return func(c fixture.Call) bool { return c.Kind == k }
}

func answered(k string) func(fixture.Call, fixture.Answer) bool {
	return func(c fixture.Call, a fixture.Answer) bool { return c.Kind == k && a.Status < 300 }
}

// orderIs fits when the CA says that the order has a status.
func orderIs(status string) func(fixture.Call, fixture.Answer) bool {
	return func(c fixture.Call, a fixture.Answer) bool {
		var order struct{ Status string }
		return c.Kind == "poll" && json.Unmarshal(a.Body, &order) == nil && order.Status == status
	}
}

// atFile kills at a change of a file in a folder. It looks only once the certificate was downloaded, because orders
// are recorded in the same way.
func atFile(folder func(*scene) string, change uint32, fits func(name string) bool) func(*scene, *trap) {
	return func(c *scene, t *trap) {
		downloaded := make(chan struct{})
		w := fixture.StartWatch(c.t, func(did uint32, path string) {
			select {
			case <-downloaded:
			default:
				return
			}
			if did&change != 0 && fits(filepath.Base(path)) {
				t.spring()
			}
		})
		must(c.t, w.Add(folder(c)))
		c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
			a := pass()
			if call.Kind == "certificate" {
				select {
				case <-downloaded:
				default:
					close(downloaded)
				}
			}
			return a
		})
	}
}

func named(name string) func(string) bool { return func(n string) bool { return n == name } }
func anyName(string) bool                 { return true }
func (c *scene) temporaries() string      { return filepath.Join(c.crtDir(), ".spoacme") }
func suffixed(suffix string) func(string) bool {
	return func(n string) bool { return strings.HasSuffix(n, suffix) }
}

// atCommand kills when HAProxy is about to get a command, or, with after, has just carried it out.
func atCommand(text string, after bool) func(*scene, *trap) {
	return func(c *scene, t *trap) {
		c.tap.Meddle(func(command string, pass func() []byte) []byte {
			if !strings.Contains(command, text) {
				return pass()
			}
			if !after {
				if t.spring() {
					return nil
				}
				return pass()
			}
			answer := pass()
			t.spring()
			return answer
		})
	}
}

// certificatePoints are those of SCENARIOS, in the order in which a certificate comes to them.
func certificatePoints() []crashPoint {
	return []crashPoint{
		{"before newOrder arrives", atRequest(kind("order"))},
		{"after newOrder", afterRequest(answered("order"))},
		{"when the authorizations are read", atRequest(kind("authorization"))},
		{"after publishing the tokens", atRequest(kind("challenge"))},
		{"after validation", afterRequest(orderIs("ready"))},
		{"before finalize arrives", atRequest(kind("finalize"))},
		{"after finalize", afterRequest(answered("finalize"))},
		{"before the download", atRequest(kind("certificate"))},
		{"after the download, before the store", afterRequest(answered("certificate"))},
		{"when the store writes its journal", atFile((*scene).store, fixture.Written, named("journal"))},
		{"after the store, before the file", atFile(func(c *scene) string { return filepath.Join(c.store(), "issued") }, fixture.Created|fixture.Appeared, anyName)},
		{"when the temporary file is there", atFile((*scene).temporaries, fixture.Created, anyName)},
		{"when the temporary file is written", atFile((*scene).temporaries, fixture.Written, anyName)},
		{"after the file", atFile((*scene).crtDir, fixture.Appeared, suffixed(".pem"))},
	}
}

// swapPoints are those between sidecar and HAProxy.
func swapPoints(first bool) []crashPoint {
	points := []crashPoint{
		{"before set", atCommand("set ssl cert", false)},
		{"after set", atCommand("set ssl cert", true)},
		{"before commit", atCommand("commit ssl cert", false)},
		{"after commit", atCommand("commit ssl cert", true)},
	}
	if first {
		points = append(points,
			crashPoint{"before new", atCommand("new ssl cert", false)},
			crashPoint{"after new", atCommand("new ssl cert", true)},
			crashPoint{"when the crt-list is written", atFile((*scene).crtDir, fixture.Appeared, named("crt-list"))},
			crashPoint{"before add", atCommand("add ssl crt-list", false)},
			crashPoint{"after add", atCommand("add ssl crt-list", true)})
	}
	return points
}

// TestKilledWhileValidated is the one point at which an order is lost: the CA asks while nobody can answer. The next
// order is placed some minutes later, as after any failed validation, or when somebody says so.
func TestKilledWhileValidated(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	trap := c.trap()
	afterRequest(answered("challenge"))(c, trap)
	c.command("issue", "--no-wait", "late", "late.example.com")
	must(t, trap.wait(t.Context()))
	c.ca.Meddle(nil)
	must(t, c.s.Restart())
	c.trouble("late", "validate late.example.com", "503")
	c.issue("late", "late.example.com")
	c.converges("late.example.com", 1)
}

func TestKilledWithCertificate(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	c.killAt("first", certificatePoints(), false)
	c.killAt("renewed", certificatePoints(), true)
}

func TestKilledInSwap(t *testing.T) {
	for _, version := range []string{"2.6", "3.2"} {
		t.Run("haproxy "+version, func(t *testing.T) {
			t.Parallel()
			c := newScene(t, sceneOptions{bare: true, haproxy: fixture.HAProxyOptions{Version: version}})
			c.killAt("first", swapPoints(true), false)
			c.killAt("renewed", swapPoints(false), true)
		})
	}
}

// killAt kills the sidecar at every point, each time with a certificate of its own, starts it again, and demands that
// all comes right.
func (c *scene) killAt(prefix string, points []crashPoint, renewal bool) {
	c.t.Helper()
	var names []string
	for i, point := range points {
		name := prefix + string(rune('a'+i))
		domain, want := name+".example.com", 1
		if renewal {
			c.issue(name, domain)
			want = 2
		}
		trap := c.trap()
		point.arm(c, trap)
		if renewal {
			c.command("renew", "--no-wait", name)
		} else {
			c.command("issue", "--no-wait", name, domain)
		}
		if err := trap.wait(c.t.Context()); err != nil {
			c.t.Fatalf("%s, %s: %v", prefix, point.name, err)
		}
		c.ca.Meddle(nil)
		c.tap.Meddle(nil)
		must(c.t, c.s.Restart())
		c.converges(domain, want)
		if c.t.Failed() {
			c.t.Fatalf("%s, killed %s", prefix, point.name)
		}
		names = append(names, domain)
	}
	c.restartsTheSame(names...)
	must(c.t, c.s.Restart())
}
