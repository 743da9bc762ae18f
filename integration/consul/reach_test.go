package consul_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// node returns what a store says of a node.
func (f *fleet) node(tb testing.TB, s *consul.Store, name string) consul.Node {
	tb.Helper()
	all, err := s.Nodes(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	i := slices.IndexFunc(all, func(n consul.Node) bool { return n.Name == name })
	if i < 0 {
		return consul.Node{}
	}
	return all[i]
}

// Nodes that keep up are never called behind, however fast the feed moves; one whose watch of the feed hangs is, and is not
// when it goes on.
func TestBehind(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	p := startProxy(t, f.c.Servers[0].URL())
	leader, n := f.start(f.config("a", 0)), f.start(f.through(p, "b"))
	l := lead(t, leader)
	eventually(t, 10*time.Second, "both are live", func() bool { return f.node(t, leader.Store, "a").Live && f.node(t, leader.Store, "b").Live })
	for i, end := 1, time.Now().Add(12*time.Second); time.Now().Before(end); i++ {
		commit(t, leader, l, store.Put(certificate("shop", i)))
		for _, name := range []string{"a", "b"} {
			if f.node(t, leader.Store, name).Behind {
				t.Fatalf("change %d: %s is called behind", i, name)
			}
		}
	}
	// The blocking query that is under way brings one more change.
	p.set(func(r *http.Request) fate {
		if strings.HasSuffix(r.URL.Path, "/feed") {
			return lose
		}
		return pass
	})
	commit(t, leader, l, store.Put(certificate("shop", 100_000)))
	commit(t, leader, l, store.Put(certificate("shop", 100_001)))
	eventually(t, 20*time.Second, "the node whose watch hangs is behind", func() bool { return f.node(t, leader.Store, "b").Behind })
	if n := f.node(t, leader.Store, "b"); !n.Live {
		t.Error("the session was not renewed:", n)
	}
	p.set(nil)
	p.CloseClientConnections()
	eventually(t, 30*time.Second, "it has caught up", func() bool {
		fp := n.cert("shop")
		return !f.node(t, leader.Store, "b").Behind && fp == fmt.Sprintf("%040X", 100_001)
	})
}

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// with returns the lines that hold a text.
func (l *lines) with(text string) []string {
	return slices.DeleteFunc(l.all(), func(s string) bool { return !strings.Contains(s, text) })
}

// A Consul that is gone is said once, and once that it is back. A barrier that can't tell who is live does not claim that
// all have the tokens.
func TestOutOfReach(t *testing.T) {
	c := fixture.StartConsul(t, fixture.ConsulOptions{})
	f := newFleet(t, c)
	var log lines
	cfg := f.config("a", 0)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	n := f.start(cfg)
	l := lead(t, n)
	commit(t, n, l, store.Put(challenges("shop", 1)))
	eventually(t, 10*time.Second, "it takes part", func() bool {
		missing, err := n.Barrier(within(t, time.Second), 1)
		return err == nil && len(missing) == 0
	})
	c.Servers[0].Kill()
	if missing, err := n.Barrier(within(t, 500*time.Millisecond), 1); err == nil || len(missing) > 0 || !strings.Contains(err.Error(), "not known which nodes are live") {
		t.Errorf("without Consul the barrier says %q, %v", missing, err)
	}
	eventually(t, 20*time.Second, "it is said", func() bool { return len(log.with("out of reach")) > 0 })
	// What would repeat itself has time to.
	_, _ = n.Lead(within(t, 25*time.Second))
	if err := c.Servers[0].Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, "it is live again", func() bool {
		nodes, err := n.Live(context.Background())
		return err == nil && len(nodes) == 1
	})
	eventually(t, 10*time.Second, "that is said, too", func() bool { return len(log.with("answers again")) > 0 })
	if again := log.with("answers again"); len(again) != 1 || !strings.Contains(again[0], "after=") {
		t.Errorf("that it is back was said so: %s", again)
	}
	if w := log.with("level=WARN"); len(w) != 1 || !strings.Contains(w[0], "start its agent") {
		t.Errorf("%d warnings:\n%s", len(w), strings.Join(w, "\n"))
	}
	t.Logf("all that was logged:\n%s", strings.Join(log.all(), "\n"))
}
