package status

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
)

// startAgent serves agent checks on a free port; the returned function asks it.
func startAgent(t *testing.T, view func() View) (ask func(question string) string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&AgentCheck{View: view}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(question string) string {
		t.Helper()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(conn, question); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatalf("%q: %v", question, err)
		}
		return line
	}
}

func TestAgentCheck(t *testing.T) {
	view := Build(one(func(in *Input) { in.Wanted = append(in.Wanted, wanted("new")) }))
	ask := startAgent(t, func() View { return view })
	const ok = "ready up 60% #expires in 54d, serial 04e2a91b, 1/1 nodes\n"
	for question, want := range map[string]string{
		"shop|":                  ok,
		"shop\n":                 ok,
		"shop\r\n":               ok,
		"shop|trailing":          ok,
		"shop":                   ok,
		"new|":                   "down #no certificate yet\n",
		"nobody|":                "down #unknown\n",
		"\x1b[2J|":               "down #unknown\n",
		strings.Repeat("x", 128): "down #unknown\n",
		"":                       "up #2 certificates, 1 missing, 1 ok; new\n",
		"|":                      "up #2 certificates, 1 missing, 1 ok; new\n",
		OthersRow + "|":          "ready up 100% #0 other certificates\n",
	} {
		if got := ask(question); got != want {
			t.Errorf("%q: got %q, want %q", question, got, want)
		}
	}
}

func TestAgentCheckWhileLoading(t *testing.T) {
	ask := startAgent(t, func() View { return View{Loading: true} })
	for _, q := range []string{"shop|", "|"} {
		if got := ask(q); got != "#the store is being read\n" {
			t.Errorf("%q: %q", q, got)
		}
	}
}

// Many checks in a moment build one view.
func TestAgentCheckSharesTheView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		built := 0
		a := &AgentCheck{View: func() View { built++; return View{} }}
		for range 10 {
			a.reply("x")
		}
		<-time.After(agentFresh)
		a.reply("x")
		if built != 2 {
			t.Errorf("built %d times", built)
		}
	})
}

// A client that says nothing, or never reads, holds its place for a moment only.
func TestAgentCheckSlowClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &AgentCheck{View: func() View { return View{} }}
		connect := func() (client net.Conn, done chan time.Duration) {
			server, client := net.Pipe()
			done = make(chan time.Duration, 1)
			start := time.Now()
			go func() {
				a.handle(t.Context(), server)
				_ = server.Close()
				done <- time.Since(start)
			}()
			return client, done
		}
		client, done := connect()
		got, _ := io.ReadAll(client)
		if d := <-done; string(got) != "up #0 certificates\n" || d != agentPatience {
			t.Errorf("%q after %v", got, d)
		}
		client, done = connect()
		_, _ = client.Write([]byte("x|"))
		if d := <-done; d != agentDeadline {
			t.Errorf("held for %v", d)
		}
	})
}

func TestAcceptEndsWithItsConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- accept(ctx, ln, 1, func(_ context.Context, c net.Conn) {
			close(entered)
			_, _ = c.Read(make([]byte, 1))
		})
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

// flaky fails to accept a few times, as a process does that is out of descriptors.
type flaky struct {
	net.Listener
	failures int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failures--; f.failures >= 0 {
		return nil, fmt.Errorf("accept: too many open files")
	}
	return f.Listener.Accept()
}

func TestAcceptSurvivesFailures(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- accept(ctx, &flaky{ln, 3}, 1, func(_ context.Context, c net.Conn) { _, _ = c.Write([]byte("hello")) })
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, _ := io.ReadAll(conn); string(got) != "hello" {
		t.Errorf("%q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSummaryAndRest(t *testing.T) {
	certs := func(states ...State) (all []CertificateView) {
		for i, s := range states {
			c := CertificateView{Name: fmt.Sprintf("c%d", i), State: s, Percent: 50 + i}
			if s != Missing {
				c.Stored = &Stored{NotAfter: now.Add(time.Duration(40+i) * day)}
			}
			all = append(all, c)
		}
		return all
	}
	for _, c := range []struct {
		in            []CertificateView
		summary, rest string
	}{
		{nil, "up #0 certificates\n", "ready up 100% #0 other certificates\n"},
		{certs(OK), "up #1 certificate, 1 ok\n", "ready up 50% #1 other certificates, the first expires in 40d\n"},
		{certs(OK, Failing), "up #2 certificates, 1 failing, 1 ok; c1\n", "up drain #2 other certificates, 1 of them need attention: run `spoacme status`\n"},
		{certs(Failing, Missing, OK), "up #3 certificates, 1 missing, 1 failing, 1 ok; c1\n", "down #3 other certificates, 2 of them need attention: run `spoacme status`\n"},
		{certs(Expired, Drift, Renewing, Unwanted), "up #4 certificates, 1 expired, 1 drift, 1 renewing, 1 unwanted; c0\n",
			"down #4 other certificates, 2 of them need attention: run `spoacme status`\n"},
	} {
		v := View{Time: now, Certificates: c.in}
		if got := summary(v).String(); got != c.summary {
			t.Errorf("summary %q, want %q", got, c.summary)
		}
		for i := range c.in {
			if c.in[i].State == Expired {
				c.in[i].Stored.NotAfter = now.Add(-day)
			}
		}
		if got := restOf(c.in, now).String(); got != c.rest {
			t.Errorf("rest %q, want %q", got, c.rest)
		}
	}
	if got := count(1234567) + " " + count(999) + " " + count(9500); got != "1,234,567 999 9,500" {
		t.Error(got)
	}
	if store.ValidName(OthersRow) != nil || settings.CertificateName(OthersRow) == nil {
		t.Error("the row that counts has a name that is no row's, or could be a certificate's")
	}
}
