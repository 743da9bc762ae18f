package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

const theirName = "theirs.example.org"

// otherTool is another program that swaps certificates through the same socket, without looking left or right.
type otherTool struct {
	c    *scene
	file string // of its own certificate
	mine map[string]bool
	mu   sync.Mutex
}

// withOtherTool starts a scene whose HAProxy has a certificate of another tool.
func withOtherTool(t *testing.T, version string) (*scene, *otherTool) {
	t.Helper()
	top, err := os.MkdirTemp("", "tool")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	o := &otherTool{file: filepath.Join(top, "etc", "theirs.pem"), mine: map[string]bool{}}
	must(t, os.MkdirAll(filepath.Dir(o.file), 0o755))
	must(t, os.WriteFile(o.file, []byte(o.bundle(t)), 0o600))
	o.c = newScene(t, sceneOptions{haproxy: fixture.HAProxyOptions{
		Version: version, Dir: top, Settings: map[string]string{"SPOACME_CERTS": "", "SPOACME_CERT_shop": ""},
		Edit: func(text string) string {
			return quickChecks(strings.Replace(text, "ssl strict-sni crt-list", "ssl strict-sni crt "+o.file+" crt-list", 1))
		},
	}})
	o.c.issue("shop", "shop.example.com")
	return o.c, o
}

func (o *otherTool) bundle(t *testing.T) string {
	b, err := fixture.SelfSigned(theirName)
	must(t, err)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mine[certificates(b)[0].SerialNumber.Text(16)] = true
	return string(b)
}

func (o *otherTool) set(t *testing.T, file string) string {
	answer, err := o.c.h.Command("set ssl cert " + file + " <<\n" + o.bundle(t))
	if err != nil {
		t.Error(err)
	}
	return answer
}

func (o *otherTool) commit(t *testing.T, file string) {
	if _, err := o.c.h.Command("commit ssl cert " + file); err != nil {
		t.Error(err)
	}
}

// untouched fails when its name serves what is not its own.
func (o *otherTool) untouched() error {
	served, err := fixture.Fetch(o.c.t.Context(), o.c.h.HTTPS.Addr(), theirName)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.mine[served.Serial] {
		return fmt.Errorf("%s serves %s of %s", theirName, served.Serial, served.Issuer)
	}
	return nil
}

// TestToolInBetween: another tool opens a transaction at every moment of ours, of its own certificate and of ours,
// and commits a little later. In the end every name serves its own certificate, whatever HAProxy mixed up, and nothing
// waits for long.
func TestToolInBetween(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		c, o := withOtherTool(t, version)
		ours := filepath.Join(c.crtDir(), "shop.pem")
		for _, moment := range []struct {
			command string
			after   bool
		}{
			{"show info;abort ssl cert", false}, {"set ssl cert", false}, {"set ssl cert", true}, {"show ssl cert *", true},
			{"commit ssl cert", false}, {"commit ssl cert", true},
		} {
			for _, file := range []string{o.file, ours} {
				if moment.after && moment.command == "commit ssl cert" && file == ours {
					continue // our part is over: it is put right when everything is compared, every minute
				}
				var once sync.Once
				var tool sync.WaitGroup
				opened := ""
				act := func() {
					once.Do(func() {
						opened = o.set(t, file)
						tool.Go(func() {
							<-time.After(150 * time.Millisecond)
							o.commit(t, file)
						})
					})
				}
				c.tap.Meddle(func(command string, pass func() []byte) []byte {
					if !strings.Contains(command, moment.command) {
						return pass()
					}
					if !moment.after {
						act()
						return pass()
					}
					answer := pass()
					act()
					return answer
				})
				begun := time.Now()
				what := fmt.Sprintf("the other tool sets %s, %s (after: %t)", filepath.Base(file), moment.command, moment.after)
				renewed := len(c.ca.IssuedFor(c.p, "shop.example.com")) + 1
				c.command("renew", "--no-wait", "shop")
				c.await(20*time.Second, func() error {
					if opened == "" || len(c.ca.IssuedFor(c.p, "shop.example.com")) < renewed {
						return errors.New("not renewed")
					}
					return nil
				})
				tool.Wait()
				c.tap.Meddle(nil)
				if err := fixture.Await(t.Context(), 75*time.Second, func() error {
					return errors.Join(c.serves("shop.example.com"), o.untouched(), c.settled())
				}); err != nil {
					t.Fatalf("%s: HAProxy said %q: %v", what, strings.TrimSpace(opened), err)
				}
				if took := time.Since(begun); took > 20*time.Second {
					t.Errorf("%s: it took %v", what, took)
				}
			}
		}
	})
}

// TestToolThatDied: a tool left its transaction open. It is named, waited for, and ended after a minute, in all versions
// at once.
func TestToolThatDied(t *testing.T) {
	t.Parallel()
	type blocked struct {
		c     *scene
		o     *otherTool
		since time.Time
	}
	var all []blocked
	for _, version := range fixture.Versions() {
		c, o := withOtherTool(t, version)
		if said := o.set(t, o.file); !strings.Contains(said, "Transaction created") {
			t.Fatalf("HAProxy %s: %s", version, said)
		}
		c.command("renew", "--no-wait", "shop")
		all = append(all, blocked{c, o, time.Now()})
	}
	for _, b := range all {
		b.c.trouble("shop", "another tool's certificate transaction is open for "+b.o.file, "it is waited for, and aborted after 1m0s")
		if err := b.o.untouched(); err != nil {
			t.Error(err)
		}
	}
	for _, b := range all {
		b.c.await(90*time.Second, func() error {
			return errors.Join(b.c.serves("shop.example.com"), b.o.untouched(), b.c.settled())
		})
		if took := time.Since(b.since); took < 45*time.Second {
			t.Errorf("the transaction was ended after %v", took)
		}
		expect(t, b.c.s.Log(), "abort another tool's certificate transaction: nothing happened to it for too long", b.o.file)
	}
}

// TestSecondSidecar: two sidecars beside one HAProxy would fight over it. The second refuses, whatever it is given of its
// own, and says what to do.
func TestSecondSidecar(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	c.issue("shop", "shop.example.com")
	dir := t.TempDir()
	port := func() string {
		p, err := fixture.ReservePort()
		must(t, err)
		t.Cleanup(p.Release)
		return p.Addr()
	}
	store, agent := "SPOACME_STORE=file://"+filepath.Join(dir, "store"), "SPOACME_AGENT="+port()
	for _, test := range []struct {
		name  string
		env   []string
		words []string
	}{
		{"the same", nil, []string{c.store(), "has it open; stop that one", "SPOACME_STORE"}},
		{"a store of its own", []string{store}, []string{"in use", c.h.Agent.Addr()}},
		{"addresses of its own", []string{store, agent, "SPOACME_HTTP=" + port(), "SPOACME_AGENT_CHECK=" + port()},
			[]string{"another spoacme looks after the same certificates", c.crtDir(), "SPOACME_CRT_DIR"}},
	} {
		s, err := fixture.LaunchSidecar(fixture.SidecarOptions{HAProxy: c.h, Pebble: c.p, Dir: t.TempDir(), Env: test.env})
		must(t, err)
		t.Cleanup(s.Stop)
		if err := s.Ended(15 * time.Second); err != nil {
			t.Errorf("%s: %v\n%s", test.name, err, s.Log())
			continue
		}
		log := strings.TrimSpace(s.Log())
		last := log[strings.LastIndexByte(log, '\n')+1:]
		t.Logf("%s: %s", test.name, last)
		for _, w := range test.words {
			if !strings.Contains(last, w) {
				t.Errorf("%s: no %q in the last line:\n%s", test.name, w, log)
			}
		}
	}
	c.command("renew", "shop")
	must(t, c.serves("shop.example.com"))
}
