package spoa

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPaths(t *testing.T) {
	var log journal
	a := New(Config{Table: table(t), Logger: log.logger()})
	h := dial(t, local(t, a))
	if err := h.hello("engine"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		known bool
	}{
		{challengePrefix + token, true},
		{challengePrefix, false},
		{challengePrefix + "unknown", false},
		{"", false},
		{"/", false},
		{"*", false},
		{strings.TrimSuffix(challengePrefix, "/"), false},
		{token, false},
		{"/" + token, false},
		{"/x" + challengePrefix + token, false},
		{"http://shop.example.com" + challengePrefix + token, false},
		{"/.WELL-KNOWN/acme-challenge/" + token, false},
		{"/.well-known//acme-challenge/" + token, false},
		{challengePrefix + "/" + token, false},
		{challengePrefix + token + "/", false},
		{challengePrefix + token + "?x", false},
		{challengePrefix + token + " ", false},
		{challengePrefix + token + "\x00", false},
		{challengePrefix + "\x00", false},
		{challengePrefix + strings.ToUpper(token), false},
		{challengePrefix + "../" + token, false},
		{challengePrefix + "../acme-challenge/" + token, false},
		{challengePrefix + "%2e%2e/" + token, false},
		{challengePrefix + "%65" + token[1:], false},
		{challengePrefix + keyAuth, false},
		{challengePrefix + "bücher", false},
		{challengePrefix + "\xff\xfe", false},
		{challengePrefix + strings.Repeat("a", maxName+1), false},
		{challengePrefix + strings.Repeat("a", 10_000), false},
		{challengePrefix + strings.Repeat("../", 3_000), false},
	} {
		want := "miss=unknown"
		if c.known {
			want = "keyauth=" + keyAuth
		}
		if got, err := h.ask(7, c.path); err != nil || got != want {
			t.Errorf("%.80q: %q, %v, want %q", c.path, got, err, want)
		}
	}
	if log.String() != "" {
		t.Errorf("log:\n%s", log.String())
	}
}

// A question may have no message, or arguments of any type.
func TestOddQuestions(t *testing.T) {
	a := New(Config{Table: table(t)})
	h := dial(t, local(t, a))
	if err := h.hello("engine"); err != nil {
		t.Fatal(err)
	}
	full := challengePrefix + token
	for name, c := range map[string]struct {
		payload [][]byte
		known   bool
	}{
		"no message":       {nil, false},
		"no arguments":     {[][]byte{str("m"), {0}}, false},
		"path is null":     {[][]byte{str("m"), {1}, field("path", 0)}, false},
		"path is a number": {[][]byte{str("m"), {1}, field("path", 2, 5)}, false},
		"path is binary":   {[][]byte{str("m"), {1}, field("path", append([]byte{9}, str(full)...)...)}, false},
		"host is a number": {[][]byte{str("m"), {2}, field("path", textValue(full)...), field("host", 2, 5)}, true},
		"second message":   {[][]byte{str("x"), {1}, field("y", 0x11), str("m"), {1}, field("path", textValue(full)...)}, true},
	} {
		if _, err := h.Write(prefixed(body(3, 1, 9, 1, c.payload...))); err != nil {
			t.Fatal(err)
		}
		if got, err := h.answer(); err != nil || (got == "keyauth="+keyAuth) != c.known {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestHealthCheck(t *testing.T) {
	a := New(Config{Table: table(t), Engine: func(id string) { t.Errorf("health check is engine %q", id) }})
	h := dial(t, local(t, a))
	if _, err := h.Write(checkFrame()); err != nil {
		t.Fatal(err)
	}
	if b, err := h.receive(); err != nil || b[0] != 0x65 {
		t.Errorf("% x, %v", b, err)
	}
	if _, err := h.receive(); err == nil {
		t.Error("connection goes on")
	}
	if s := a.Stats(); s.HealthChecks != 1 {
		t.Errorf("%+v", s)
	}
}

// An agent that is not fit fails health checks, says nothing of it in the log, and answers what it is asked all the same.
func TestUnfit(t *testing.T) {
	var log journal
	var fit atomic.Bool
	a := New(Config{Table: table(t), Fit: fit.Load, Logger: log.logger()})
	addr := local(t, a)
	for _, now := range []bool{false, true, false} {
		fit.Store(now)
		h := dial(t, addr)
		if _, err := h.Write(checkFrame()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.receive(); (err == nil) != now {
			t.Errorf("fit %t: %v", now, err)
		}
	}
	if err := dial(t, addr).hello("engine"); err != nil {
		t.Error("not a health check:", err)
	}
	if log.String() != "" {
		t.Error(log.String())
	}
}

func TestEngineIsReportedOnce(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	a := New(Config{Table: table(t), Engine: func(id string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, id)
	}})
	addr := local(t, a)
	for _, id := range []string{"first", "first", "", strings.Repeat("x", maxEngine+1), "second", "first"} {
		if err := dial(t, addr).hello(id); err != nil {
			t.Fatal(err)
		}
	}
	now := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
	eventually(t, "two engines", func() bool { return len(now()) >= 2 })
	if got := now(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("engines %q", got)
	}
}

// A slow receiver of engine ids delays nobody, and none is lost for good.
func TestEngineNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		a := New(Config{Table: table(t), Engine: func(string) {
			calls.Add(1)
			<-time.After(time.Minute)
		}})
		ln := newPipes()
		serve(t, a, ln)
		start := time.Now()
		for i := range 40 {
			h := ln.dial()
			if err := h.hello(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			_ = h.Close()
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("HELLOs took %v", d)
		}
		<-time.After(time.Hour)
		before := calls.Load()
		h := ln.dial()
		if err := h.hello("39"); err != nil { // found no room the first time
			t.Fatal(err)
		}
		_ = h.Close()
		synctest.Wait()
		if calls.Load() != before+1 {
			t.Errorf("%d calls, then %d", before, calls.Load())
		}
	})
}

func TestServeWaitsOutMissingDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log journal
		a := New(Config{Table: table(t), Logger: log.logger()})
		full := &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
		ln := newPipes(slices.Repeat([]error{full}, 12)...)
		start := time.Now()
		serve(t, a, ln)
		if err := ln.dial().hello("engine"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 4*time.Second || d > 6*time.Second {
			t.Errorf("waited %v", d)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

func TestServeReturnsWhatBrokeTheListener(t *testing.T) {
	broken := errors.New("broken")
	a := New(Config{Table: table(t)})
	if err := a.Serve(t.Context(), newPipes(broken)); !errors.Is(err, broken) {
		t.Errorf("Serve: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	a := New(Config{Table: table(t), MaxConns: 3})
	addr := local(t, a)
	var conns []*haproxy
	for range 3 {
		h := dial(t, addr)
		if err := h.hello("engine"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, h)
	}
	if err := dial(t, addr).hello("engine"); err == nil {
		t.Error("a fourth connection is served")
	}
	_ = conns[0].Close()
	eventually(t, "a place is free", func() bool { return a.Stats().Connections == 2 })
	if err := dial(t, addr).hello("engine"); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	if s := a.Stats(); s.TurnedAway != 1 {
		t.Errorf("%+v", s)
	}
}

// 1,000 connections that end in a reset leave nothing behind and no log line,
// and the good connection beside them is served all the while.
func TestResetsLeaveNothing(t *testing.T) {
	var log journal
	a := New(Config{Table: table(t), Logger: log.logger()})
	addr := local(t, a)
	good := dial(t, addr)
	if err := good.hello("engine"); err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	goroutines, memory := runtime.NumGoroutine(), heap()
	for range 2 {
		var conns []*haproxy
		for i := range 1000 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			h := newHAProxy(c)
			if i%2 == 0 {
				if err := h.hello("engine"); err != nil {
					t.Fatal(err)
				}
			}
			if i%10 == 0 {
				if _, err := h.Write(askFrame(1, challengePrefix+token)); err != nil {
					t.Fatal(err)
				}
			}
			conns = append(conns, h)
		}
		if got, err := good.ask(1, challengePrefix+token); err != nil || got != "keyauth="+keyAuth {
			t.Fatalf("beside them: %q, %v", got, err)
		}
		for _, h := range conns {
			if err := h.Conn.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
			_ = h.Close()
		}
		eventually(t, "all but the good one are gone", func() bool {
			return a.Stats().Connections == 1 && runtime.NumGoroutine() <= goroutines
		})
	}
	if now := heap(); now > memory+2<<20 {
		t.Errorf("heap grew from %d to %d kB", memory>>10, now>>10)
	}
	if log.String() != "" {
		t.Errorf("log:\n%s", log.String())
	}
	if s := a.Stats(); s.Panics != 0 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// Questions that were sent before the agent stops are answered, one whose
// read of the store is under way too; then everything is closed.
func TestServeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		a := New(Config{Table: table(t), Miss: tokenAfter(release)})
		ln := newPipes()
		stop := serve(t, a, ln)
		idle, busy := ln.dial(), ln.dial()
		for _, h := range []*haproxy{idle, busy} {
			if err := h.hello("engine"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := busy.Write(askFrame(1, challengePrefix+"late")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		synctest.Wait()
		if got, err := idle.ask(2, challengePrefix+token); err != nil || got != "keyauth="+keyAuth {
			t.Errorf("question that crossed the stop: %q, %v", got, err)
		}
		<-time.After(500 * time.Millisecond)
		close(release)
		if got, err := busy.answer(); err != nil || got != "keyauth=late.thumb" {
			t.Errorf("question in hand: %q, %v", got, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if d := time.Since(start); d != 500*time.Millisecond {
			t.Errorf("stopped after %v", d)
		}
		if n := a.Stats().Connections; n != 0 {
			t.Errorf("%d connections are open", n)
		}
	})
}

func TestMetricsRegister(t *testing.T) {
	a := New(Config{Table: table(t), Miss: tokenAfter(nil)})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(a.Metrics()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "spoacme_spoa_") {
			t.Errorf("metric %s", f.GetName())
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	a := New(Config{Table: table(b)})
	addr := local(b, a)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		h := newHAProxy(c)
		if err := h.hello("engine"); err != nil {
			b.Error(err)
			return
		}
		for pb.Next() {
			if got, err := h.ask(1, challengePrefix+token); err != nil || got != "keyauth="+keyAuth {
				b.Errorf("%q, %v", got, err)
				return
			}
		}
	})
}
