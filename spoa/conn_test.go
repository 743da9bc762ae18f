package spoa

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/negasus/haproxy-spoe-go/frame"
	"github.com/negasus/haproxy-spoe-go/typeddata"
)

// Each of these ends the process of an agent that gives the library the
// connection itself, or is otherwise nothing that HAProxy sends.
var badFrames = []struct {
	name   string
	reason string
	greet  bool // HELLO comes first
	data   []byte
}{
	{"length 0", "length", false, []byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0}},
	{"length 4", "length", false, []byte{0, 0, 0, 4, 1, 0, 0, 0, 1, 0, 0}},
	{"length of 4 GiB", "length", false, []byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 1, 0, 0}},
	{"one byte too long", "length", false, binary.BigEndian.AppendUint32(nil, maxBody+1)},
	{"HTTP", "length", false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
	{"ids missing", "malformed", false, prefixed([]byte{1, 0, 0, 0, 1, 0xff, 0xff})},
	{"endless varint", "malformed", false, prefixed(append([]byte{1, 0, 0, 0, 1}, bytes.Repeat([]byte{0xff}, 100)...))},
	{"healthcheck is a string", "malformed", false, prefixed(body(1, 1, 0, 0, field("healthcheck", textValue("yes")...)))},
	{"max-frame-size is a string", "malformed", false, prefixed(body(1, 1, 0, 0, field("max-frame-size", textValue("1")...)))},
	{"engine-id is a number", "malformed", false, prefixed(body(1, 1, 0, 0, field("engine-id", typeddata.TypeUInt32, 1)))},
	{"engine-id is null", "malformed", false, prefixed(body(1, 1, 0, 0, field("engine-id", 0)))},
	{"key past the end", "malformed", false, prefixed(body(1, 1, 0, 0, vint(200), []byte("abc")))},
	{"key length past int64", "malformed", false, prefixed(body(1, 1, 0, 0, vint(1<<63+5), []byte("abc")))},
	{"value missing", "malformed", false, prefixed(body(1, 1, 0, 0, str("engine-id")))},
	{"unknown type of value", "malformed", false, prefixed(body(1, 1, 0, 0, field("x", 0x0a)))},
	{"agent's own frame", "type", false, prefixed(body(frame.TypeAgentHello, 1, 0, 0))},
	{"unknown type", "type", false, prefixed(body(77, 1, 0, 0))},
	{"fragment", "fragment", true, prefixed(body(frame.TypeNotify, 0, 1, 1))},
	{"rest of a fragment", "fragment", true, prefixed(body(frame.TypeUnset, 1, 1, 1))},
	{"second HELLO", "sequence", true, helloFrame("again")},
	{"question before HELLO", "sequence", false, askFrame(1, "/")},
	{"DISCONNECT before HELLO", "sequence", false, disconnectFrame()},
	{"message name past the end", "malformed", true, prefixed(body(3, 1, 1, 1, vint(500), []byte("x")))},
	{"message without its count", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge")))},
	{"fewer arguments than counted", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{2}, field("path", 0)))},
	{"truncated varint", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{1}, field("n", typeddata.TypeInt64, 0xf1)))},
	{"truncated IPv4", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{1}, field("src", typeddata.TypeIPv4, 1, 2)))},
	{"truncated IPv6", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{1}, field("src", typeddata.TypeIPv6, 1, 2)))},
	{"string past the end", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{1}, field("path", append([]byte{8}, vint(300)...)...)))},
	{"string past int64", "malformed", true, prefixed(body(3, 1, 1, 1, str("challenge"), []byte{1}, field("path", append([]byte{8}, vint(1<<64-1)...)...)))},
	{"hundreds of messages", "malformed", true, prefixed(body(3, 1, 1, 1, bytes.Repeat([]byte{0, 0}, 500)))},
	{"hundreds of arguments", "malformed", true, prefixed(body(3, 1, 1, 1, bytes.Repeat(append([]byte{0, 150}, make([]byte, 300)...), 3)))},
}

func TestBadFramesEndTheirConnectionOnly(t *testing.T) {
	var log journal
	a := New(Config{Table: table(t), Logger: log.logger()})
	addr := local(t, a)
	good := dial(t, addr)
	if err := good.hello("engine"); err != nil {
		t.Fatal(err)
	}
	for _, c := range badFrames {
		t.Run(c.name, func(t *testing.T) {
			before := refusedFor(t, a, c.reason)
			h := dial(t, addr)
			if c.greet {
				if err := h.hello("engine"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := h.Write(c.data); err != nil {
				t.Fatal(err)
			}
			_ = h.SetReadDeadline(time.Now().Add(5 * time.Second))
			if b, err := h.receive(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection goes on: % x, %v", b, err)
			}
			if got := refusedFor(t, a, c.reason); got != before+1 {
				t.Errorf("refused for %s: %d more, want 1 (%+v)", c.reason, got-before, a.Stats())
			}
			if got, err := good.ask(1, challengePrefix+token); err != nil || got != "keyauth="+keyAuth {
				t.Errorf("good connection: %q, %v", got, err)
			}
		})
	}
	if n := a.Stats().Panics; n != 0 {
		t.Errorf("%d panics had to be contained", n)
	}
	if n := strings.Count(log.String(), "\n"); n > 1 {
		t.Errorf("%d log lines for %d bad frames:\n%s", n, len(badFrames), log.String())
	}
}

func refusedFor(t *testing.T, a *Agent, reason string) uint64 {
	t.Helper()
	for i, r := range refusals {
		if r.reason == reason {
			return a.refused[i].Load()
		}
	}
	t.Fatalf("no reason %q", reason)
	return 0
}

// Whatever the pieces, the frames are the same.
func TestFramesInPieces(t *testing.T) {
	stream := bytes.Join([][]byte{
		helloFrame("engine"),
		askFrame(1, challengePrefix+token),
		askFrame(2, challengePrefix+strings.Repeat("x", 10000)), // the buffer grows
		askFrame(3, challengePrefix+token),
		prefixed(body(frame.TypeNotify, 1, 4, 1)), // no message
		disconnectFrame(),
	}, nil)
	for _, size := range []int{1, 2, 3, 5, 7, 100, smallBuffer, len(stream)} {
		ours, theirs := net.Pipe()
		a := New(Config{Table: table(t)})
		go a.handle(t.Context(), newConn(theirs, a))
		go func() {
			for rest := stream; len(rest) > 0; {
				n, err := ours.Write(rest[:min(size, len(rest))])
				if err != nil {
					t.Errorf("pieces of %d: %v", size, err)
					return
				}
				rest = rest[n:]
			}
		}()
		h := newHAProxy(ours)
		kinds, answers := map[frame.Type]int{}, map[uint64]string{}
		for range 6 {
			b, err := h.receive()
			if err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
			kinds[frame.Type(b[0])]++
			if frame.Type(b[0]) == frame.TypeAgentAck {
				id, variable, err := parseAck(b)
				if err != nil {
					t.Fatalf("pieces of %d: %v", size, err)
				}
				answers[id] = variable
			}
		}
		if kinds[frame.TypeAgentHello] != 1 || kinds[frame.TypeAgentDisconnect] != 1 || len(answers) != 4 ||
			answers[1] != "keyauth="+keyAuth || answers[2] != "miss=unknown" || answers[3] != answers[1] || answers[4] != "miss=unknown" {
			t.Errorf("pieces of %d: %v, %v", size, kinds, answers)
		}
		if _, err := h.receive(); err != io.EOF {
			t.Errorf("pieces of %d: after the end: %v", size, err)
		}
	}
}

func TestDeadlines(t *testing.T) {
	for _, c := range []struct {
		name  string
		greet bool
		send  []byte
		after time.Duration
		log   bool
	}{
		{"no HELLO", false, nil, 2 * time.Second, false},
		{"half a HELLO", false, helloFrame("e")[:9], 2 * time.Second, true},
		{"idle", true, nil, 5 * time.Minute, false},
		{"half a length", true, []byte{0, 0}, 2 * time.Second, true},
		{"half a question", true, askFrame(1, "/")[:20], 2 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log journal
				a := New(Config{Table: table(t), Logger: log.logger()})
				ln := newPipes()
				stop := serve(t, a, ln)
				h := ln.dial()
				if c.greet {
					if err := h.hello("engine"); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				if _, err := h.Write(c.send); err != nil {
					t.Fatal(err)
				}
				if _, err := h.receive(); err != io.EOF {
					t.Errorf("read: %v", err)
				}
				if d := time.Since(start); d != c.after {
					t.Errorf("closed after %v, want %v", d, c.after)
				}
				if got := log.String(); (got != "") != c.log {
					t.Errorf("log: %s", got)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A peer that sends a byte now and then gains no time by it.
func TestDripDoesNotExtendAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(Config{Table: table(t)})
		ln := newPipes()
		serve(t, a, ln)
		h := ln.dial()
		start := time.Now()
		for _, b := range helloFrame("engine") {
			if _, err := h.Write([]byte{b}); err != nil {
				break
			}
			<-time.After(300 * time.Millisecond)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("connection lived for %v", d)
		}
	})
}

// A peer that asks and never reads is cut off, and cannot pile up questions.
func TestPeerThatDoesNotRead(t *testing.T) {
	a := New(Config{Table: table(t), WriteTimeout: 200 * time.Millisecond})
	h := dial(t, local(t, a))
	if err := h.hello("engine"); err != nil {
		t.Fatal(err)
	}
	goroutines := runtime.NumGoroutine()
	many := bytes.Repeat(askFrame(1, challengePrefix+token), 100)
	_ = h.SetWriteDeadline(time.Now().Add(10 * time.Second))
	for {
		if n := runtime.NumGoroutine(); n > goroutines+inHand+10 {
			t.Fatalf("%d goroutines", n-goroutines)
		}
		if _, err := h.Write(many); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("never cut off")
		} else if err != nil {
			break
		}
	}
	eventually(t, "connection is closed", func() bool { return a.Stats().Connections == 0 })
}
