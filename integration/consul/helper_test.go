package consul_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// TestMain is also the program that tests kill and stop: it leads and commits until its lease ends.
func TestMain(m *testing.M) {
	if url := os.Getenv("SPOACME_TEST_LEADER"); url != "" {
		if err := leaderProgram(url); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func leaderProgram(url string) error {
	s, err := consul.Open(consul.Config{URL: url, Node: "victim", Plain: true})
	if err != nil {
		return err
	}
	l, err := s.Lead(context.Background())
	if err != nil {
		return err
	}
	fmt.Println("leading")
	for i := 1; ; i++ {
		err := s.Commit(context.Background(), l, nil, []store.Op{store.Put(&store.Budget{CA: "victim", Error: fmt.Sprint(i)})})
		if err != nil {
			// It is not known what became of a transaction that was under way when the process was stopped.
			fmt.Println("ended:", errors.Is(err, store.ErrRefused) || errors.Is(err, store.ErrUnknown), err)
			l.Release()
			return nil
		}
	}
}

// victim is that program.
type victim struct {
	cmd   *exec.Cmd
	lines chan string
}

func startVictim(t *testing.T, url string) *victim {
	t.Helper()
	v := &victim{cmd: exec.Command(os.Args[0]), lines: make(chan string, 100)}
	v.cmd.Env = append(os.Environ(), "SPOACME_TEST_LEADER="+url)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := v.cmd.StdoutPipe()
	if err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(v.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			v.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait()
	})
	v.expect(t, "leading")
	return v
}

func (v *victim) expect(t *testing.T, prefix string) string {
	t.Helper()
	select {
	case line := <-v.lines:
		if !strings.HasPrefix(line, prefix) {
			t.Fatalf("the program says %q, want %q", line, prefix)
		}
		return line
	case <-time.After(40 * time.Second):
		t.Fatalf("the program does not say %q", prefix)
	}
	return ""
}

// proxy stands between a store and Consul and does what the test tells it to.
type proxy struct {
	*httptest.Server
	mu   sync.Mutex
	rule func(*http.Request) fate
}

// fate is what becomes of a request.
type fate int

const (
	pass      fate = iota
	loseReply      // Consul gets it, the store no answer
	lose           // Consul does not get it, the store no answer
)

func startProxy(t *testing.T, server string) *proxy {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.ErrorLog = nil
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		rule := p.rule
		p.mu.Unlock()
		f := pass
		if rule != nil {
			f = rule(r)
		}
		switch f {
		case pass:
			forward.ServeHTTP(w, r)
			return
		case loseReply:
			forward.ServeHTTP(discard{http.Header{}}, r.WithContext(context.WithoutCancel(r.Context())))
		case lose:
			_, _ = io.Copy(io.Discard, r.Body)
		}
		<-r.Context().Done() // no answer until the client gives up
	}))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

func (p *proxy) set(rule func(*http.Request) fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = rule
}

func (p *proxy) addr() string { return strings.TrimPrefix(p.URL, "http://") }

// isTxn tells transactions, in which records may be read, too.
func isTxn(r *http.Request) bool { return r.URL.Path == "/v1/txn" }

// isWrite tells transactions that change something.
func isWrite(r *http.Request) bool {
	if !isTxn(r) {
		return false
	}
	b, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(b))
	return err == nil && strings.Count(string(b), `"Verb":`) > strings.Count(string(b), `"Verb":"get"`)
}

// once does something to the first request that fits.
func once(fits func(*http.Request) bool, f fate) func(*http.Request) fate {
	var one sync.Once
	return func(r *http.Request) fate {
		what := pass
		if fits(r) {
			one.Do(func() { what = f })
		}
		return what
	}
}

func readAll(t *testing.T, r *http.Request) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	return b
}
