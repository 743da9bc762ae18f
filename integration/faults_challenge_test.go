package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

const challengePath = "/.well-known/acme-challenge/"

// holdOrder begins an order that stops when its token is published, and returns the token and a function that lets it go on.
func (c *scene) holdOrder(name, domain string) (token string, release func()) {
	c.t.Helper()
	held, goOn := make(chan struct{}, 100), make(chan struct{})
	c.ca.Meddle(func(call fixture.Call, pass func() fixture.Answer) fixture.Answer {
		if call.Kind == "challenge" && call.Name() == domain {
			held <- struct{}{}
			<-goOn
		}
		return pass()
	})
	c.command("issue", "--no-wait", name, domain)
	select {
	case <-held:
	case <-time.After(20 * time.Second):
		close(goOn)
		c.t.Fatal("the token was not published")
	}
	for _, call := range c.ca.Calls("authorization") {
		var a struct {
			Challenges []struct{ Type, Token string }
		}
		if call.Name() != domain || json.Unmarshal(call.Answer, &a) != nil {
			continue
		}
		for _, ch := range a.Challenges {
			if ch.Type == "http-01" {
				token = ch.Token
			}
		}
	}
	return token, func() { close(goOn) }
}

// ask sends a request as it is and returns the answer's status and body, and how long it took.
func ask(t *testing.T, port *fixture.Port, request string) (status int, body string, took time.Duration) {
	t.Helper()
	conn, err := net.Dial("tcp", port.Addr())
	must(t, err)
	defer conn.Close()
	begun := time.Now()
	_ = conn.SetDeadline(begun.Add(10 * time.Second))
	_, err = io.WriteString(conn, request+" HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	must(t, err)
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	return res.StatusCode, string(b), time.Since(begun)
}

// complaints returns the lines of the sidecar's log, after an offset, that are no mere news.
func (c *scene) complaints(offset int) (found []string) {
	for line := range strings.Lines(c.s.Log()[offset:]) {
		if strings.Contains(line, "2.6 is needed") { // for rows on the statistics page
			continue
		}
		if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=DEBUG") {
			found = append(found, line)
		}
	}
	return found
}

// TestOddChallenges asks what nobody should ask, of a sidecar that is well, hangs, and is dead.
func TestOddChallenges(t *testing.T) {
	eachVersionAtOnce(t, func(t *testing.T, version string) {
		c := newScene(t, sceneOptions{idle: true, bare: true, haproxy: fixture.HAProxyOptions{Version: version}})
		file := filepath.Join(c.h.ConfigDir(), "spoe-acme.conf")
		b, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte(strings.Replace(string(b), "timeout idle 30s", "timeout idle 1s", 1)), 0o644))
		must(t, c.h.Restart())
		c.start(fixture.SidecarOptions{})
		token, release := c.holdOrder("shop", "shop.example.com")
		quiet := len(c.s.Log())
		c.oddRequests(token)
		c.resets()
		<-time.After(2500 * time.Millisecond) // HAProxy resets its idle connections to the agent
		if status, body, _ := ask(t, c.h.HTTP, "GET "+challengePath+token); status != 200 || !strings.HasPrefix(body, token+".") {
			t.Errorf("after all that: %d %q", status, body)
		}
		if said := c.complaints(quiet); len(said) > 0 {
			t.Errorf("the sidecar complains:\n%s", strings.Join(said, ""))
		}
		c.hungAndDead(token)
		release()
	})
}

func (c *scene) oddRequests(token string) {
	for _, test := range []struct {
		request string
		status  int
	}{
		{"GET " + challengePath + token, 200},
		{"GET " + challengePath + token + "?x=1&y=" + strings.Repeat("z", 1000), 200},
		{"HEAD " + challengePath + token, 200},
		{"GET " + challengePath + "unknown", 404},
		{"GET " + challengePath, 404},
		{"GET " + challengePath + "?" + token, 404},
		{"GET " + challengePath + token + "/", 404},
		{"GET " + challengePath + token + ".", 404},
		{"GET " + challengePath + strings.ToLower(token) + "x", 404},
		{"GET " + challengePath + "../../etc/passwd", 404},
		{"GET " + challengePath + "%2e%2e/%2e%2e/etc/passwd", 404},
		{"GET " + challengePath + token + "%00", 404},
		{"GET " + challengePath + "%00", 404},
		{"GET " + challengePath + "a%0d%0aset-cookie:x", 404},
		{"GET " + challengePath + "\x00", 400},
		{"GET " + challengePath + strings.Repeat("a", 10_000), 404},
		{"HEAD " + challengePath + "unknown", 404},
		{"POST " + challengePath + "unknown", 404},
		{"OPTIONS " + challengePath + "unknown", 404},
	} {
		status, body, took := ask(c.t, c.h.HTTP, test.request)
		good := status == test.status
		if head := strings.HasPrefix(test.request, "HEAD"); status == 200 && !head {
			good = good && strings.HasPrefix(body, token+".") && len(body) == len(token)+1+43
		}
		if !good || took > 2*time.Second {
			c.t.Errorf("%.80q: %d %.100q after %v, want %d", test.request, status, body, took, test.status)
		}
	}
}

// resets opens many connections to the agent and resets them, half of them in the middle of a frame.
func (c *scene) resets() {
	for i := range 1000 {
		conn, err := net.Dial("tcp", c.h.Agent.Addr())
		if err != nil {
			c.t.Fatal(err)
		}
		if i%2 == 0 {
			_, _ = conn.Write([]byte{0, 0, 0})
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

// hungAndDead: other paths never wait for the agent, and the challenge path waits for it no longer than it may.
func (c *scene) hungAndDead(token string) {
	t := c.t
	fast := func(state string) {
		for range 20 {
			if status, _, took := ask(t, c.h.HTTP, "GET /"); status != 301 || took > time.Second {
				t.Errorf("the agent is %s: another path answers %d after %v", state, status, took)
			}
		}
	}
	must(t, syscall.Kill(c.s.PID(), syscall.SIGSTOP))
	c.await(time.Second, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.s.PID()))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = errors.New("it does not stop")
		}
		return err
	})
	status, _, took := ask(t, c.h.HTTP, "GET "+challengePath+token)
	if status != 503 || took > 4*time.Second {
		t.Errorf("the agent hangs: %d after %v", status, took)
	}
	fast("hung")
	must(t, syscall.Kill(c.s.PID(), syscall.SIGCONT))
	c.await(10*time.Second, func() error {
		if status, body, _ := ask(t, c.h.HTTP, "GET "+challengePath+token); status != 200 {
			return fmt.Errorf("after a pause: %d %q", status, body)
		}
		return nil
	})
	c.s.Kill9()
	awaitAgent(t, c.h, "DOWN")
	for range 20 {
		if status, _, took := ask(t, c.h.HTTP, "GET "+challengePath+token); status != 503 || took > 500*time.Millisecond {
			t.Errorf("the agent is dead: %d after %v", status, took)
		}
	}
	fast("dead")
}

// TestStoppedInOrder: SIGTERM in the middle of an order. The tokens are taken back, and the end comes soon; the order
// goes on with the next process.
func TestStoppedInOrder(t *testing.T) {
	t.Parallel()
	c := newScene(t, sceneOptions{bare: true})
	token, release := c.holdOrder("shop", "shop.example.com")
	pid := c.s.PID()
	must(t, syscall.Kill(pid, syscall.SIGTERM))
	begun := time.Now()
	must(t, c.s.Ended(10*time.Second))
	took := time.Since(begun)
	if took > 5*time.Second {
		t.Errorf("it ended after %v", took)
	}
	t.Logf("ended after %v", took)
	left, err := os.ReadDir(filepath.Join(c.store(), "challenges"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range left {
		if f.Name() != ".keep.json" {
			t.Errorf("%s is left in the store", f.Name())
		}
	}
	c.ca.Meddle(nil)
	release()
	must(t, c.s.Restart())
	c.converges("shop.example.com", 1)
	if status, _, _ := ask(t, c.h.HTTP, "GET "+challengePath+token); status != 404 {
		t.Errorf("the token is answered with %d when the order is over", status)
	}
	if said := c.complaints(0); len(said) > 0 {
		t.Errorf("the sidecar complains:\n%s", strings.Join(said, ""))
	}
}
