package spoa

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/negasus/haproxy-spoe-go/frame"
	"github.com/negasus/haproxy-spoe-go/typeddata"
	"github.com/negasus/haproxy-spoe-go/varint"
)

// Frames as HAProxy writes them, built byte by byte: the library cannot
// encode a NOTIFY that has messages.

func vint(n uint64) []byte {
	b := make([]byte, 10)
	return b[:varint.PutUvarint(b, n)]
}

func str(s string) []byte { return append(vint(uint64(len(s))), s...) }

// field is a name and an encoded typed value.
func field(name string, value ...byte) []byte { return append(str(name), value...) }

func textValue(s string) []byte { return append([]byte{typeddata.TypeString}, str(s)...) }

// body is a frame without its length.
func body(kind frame.Type, flags uint32, stream, id uint64, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{byte(kind)}, flags)
	b = append(b, vint(stream)...)
	b = append(b, vint(id)...)
	return append(b, bytes.Join(payload, nil)...)
}

func prefixed(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func helloFrame(engine string) []byte {
	return prefixed(body(frame.TypeHaproxyHello, 1, 0, 0,
		field("supported-versions", textValue("2.0")...),
		field("max-frame-size", append([]byte{typeddata.TypeUInt32}, vint(16380)...)...),
		field("capabilities", textValue("pipelining,async")...),
		field("engine-id", textValue(engine)...)))
}

func checkFrame() []byte {
	return prefixed(body(frame.TypeHaproxyHello, 1, 0, 0,
		field("supported-versions", textValue("2.0")...),
		field("max-frame-size", append([]byte{typeddata.TypeUInt32}, vint(16380)...)...),
		field("capabilities", textValue("")...),
		field("healthcheck", 0x11)))
}

func disconnectFrame() []byte {
	return prefixed(body(frame.TypeHaproxyDisconnect, 1, 0, 0,
		field("status-code", typeddata.TypeUInt32, 0),
		field("message", textValue("normal")...)))
}

func askFrame(id uint64, path string) []byte {
	return prefixed(body(frame.TypeNotify, 1, id, 1, str("challenge"), []byte{3},
		field("path", textValue(path)...),
		field("host", textValue("shop.example.com")...),
		field("src", typeddata.TypeIPv4, 127, 0, 0, 1)))
}

// haproxy is the other end of a connection to the agent.
type haproxy struct {
	net.Conn
	r *bufio.Reader
}

func newHAProxy(c net.Conn) *haproxy { return &haproxy{c, bufio.NewReader(c)} }

// receive reads a frame's body.
func (h *haproxy) receive() ([]byte, error) {
	var size [prefixLen]byte
	if _, err := io.ReadFull(h.r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(h.r, b)
	return b, err
}

// hello greets the agent and checks its answer.
func (h *haproxy) hello(engine string) error {
	if _, err := h.Write(helloFrame(engine)); err != nil {
		return err
	}
	b, err := h.receive()
	if err == nil && frame.Type(b[0]) != frame.TypeAgentHello {
		err = fmt.Errorf("answer to HELLO has type %d", b[0])
	}
	return err
}

// ask returns the one variable of the answer, as "name=value".
func (h *haproxy) ask(id uint64, path string) (string, error) {
	if _, err := h.Write(askFrame(id, path)); err != nil {
		return "", err
	}
	return h.answer()
}

func (h *haproxy) answer() (string, error) {
	b, err := h.receive()
	if err != nil {
		return "", err
	}
	_, variable, err := parseAck(b)
	return variable, err
}

// parseAck takes an ACK apart strictly: one action, set-var, transaction, string.
func parseAck(b []byte) (id uint64, variable string, err error) {
	if frame.Type(b[0]) != frame.TypeAgentAck || binary.BigEndian.Uint32(b[1:]) != 1 {
		return 0, "", fmt.Errorf("not a whole ACK: % x", b)
	}
	r := reader{rest: b[5:]}
	id = r.varint()
	r.varint()
	if head := r.bytes(3); !bytes.Equal(head, []byte{1, 3, 2}) {
		return id, "", fmt.Errorf("action is % x, not set-var of a transaction", head)
	}
	name := string(r.bytes(r.varint()))
	if kind := r.bytes(1); !bytes.Equal(kind, []byte{typeddata.TypeString}) {
		return id, "", fmt.Errorf("value of %s has type % x", name, kind)
	}
	value := string(r.bytes(r.varint()))
	if r.bad || len(r.rest) > 0 {
		return id, "", fmt.Errorf("more or less than one action: % x", b)
	}
	return id, name + "=" + value, nil
}

const (
	token   = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
	keyAuth = token + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
)

// table has one token.
func table(t testing.TB) *Table {
	t.Helper()
	tab := new(Table)
	if err := tab.Publish("order", 1, map[string]string{token: keyAuth}); err != nil {
		t.Fatal(err)
	}
	return tab
}

// journal keeps log lines from level info up.
type journal struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// pipes is a listener whose connections are net.Pipes, for tests with
// synthetic time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	fail  []error // returned by Accept before anything else
}

func newPipes(fail ...error) *pipes {
	return &pipes{conns: make(chan net.Conn), done: make(chan struct{}), fail: fail}
}

func (p *pipes) Accept() (net.Conn, error) {
	if len(p.fail) > 0 {
		err := p.fail[0]
		p.fail = p.fail[1:]
		return nil, err
	}
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial() *haproxy {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return newHAProxy(ours)
}

// serve runs an agent on ln and returns a function that stops it and returns
// what Serve returned. It may be called more than once.
func serve(t testing.TB, a *Agent, ln net.Listener) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, ln) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return stop
}

// local starts an agent on a TCP port of its own and returns its address.
func local(t testing.TB, a *Agent) string {
	t.Helper()
	ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, a, ln)
	return ln.Addr().String()
}

func dial(t testing.TB, addr string) *haproxy {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return newHAProxy(c)
}

// eventually waits until ok holds, for ten seconds at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			stacks := make([]byte, 1<<16)
			t.Fatalf("never happened: %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}
