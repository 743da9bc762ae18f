package spoa

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// replay is a connection that delivers data in pieces of one size and then
// ends, and keeps what is written.
type replay struct {
	net.Conn // nil: nothing else of it is used
	data     []byte
	piece    int

	mu      sync.Mutex
	written [][]byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.piece)], r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *replay) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = append(r.written, bytes.Clone(p))
	return len(p), nil
}

func (r *replay) Close() error                     { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }
func (r *replay) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "replay", Net: "unix"} }

// FuzzConn: whatever a peer sends, in whatever pieces, the connection ends,
// the library never panics, each write is one short whole frame, and memory
// is bounded.
func FuzzConn(f *testing.F) {
	hello := helloFrame("engine")
	f.Add(byte(0), hello)
	f.Add(byte(1), bytes.Join([][]byte{hello, askFrame(1, challengePrefix+token), disconnectFrame()}, nil))
	f.Add(byte(9), bytes.Join([][]byte{checkFrame(), hello}, nil))
	for _, c := range badFrames {
		data := c.data
		if c.greet {
			data = append(bytes.Clone(hello), data...)
		}
		f.Add(byte(200), data)
	}
	tab := table(f)
	f.Fuzz(func(t *testing.T, piece byte, data []byte) {
		a := New(Config{Table: tab})
		r := &replay{data: data, piece: int(piece) + 1}
		hang := time.AfterFunc(10*time.Second, func() { panic("connection does not end") })
		defer hang.Stop()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		a.handle(t.Context(), newConn(r, a))
		runtime.ReadMemStats(&after)

		if n := a.panics.Load(); n != 0 {
			t.Errorf("%d panics", n)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20+400*uint64(len(data)) {
			t.Errorf("%d bytes allocated for %d received", used, len(data))
		}
		if n := a.Stats().Connections; n != -1 { // it was not accepted, and left
			t.Errorf("%d connections", n)
		}
		for _, w := range r.written {
			checkFrames(t, w)
		}
	})
}

// checkFrames demands that what was written at once is whole frames, none of them long.
func checkFrames(t *testing.T, w []byte) {
	t.Helper()
	for len(w) > 0 {
		if len(w) < prefixLen+minBody {
			t.Fatalf("wrote % x", w)
		}
		size := int(binary.BigEndian.Uint32(w))
		if size < minBody || size > 1024 || size > len(w)-prefixLen {
			t.Fatalf("wrote % x", w)
		}
		body := w[prefixLen : prefixLen+size]
		if body[0] == 0x67 {
			if _, v, err := parseAck(body); err != nil {
				t.Errorf("answer %q: %v", v, err)
			}
		}
		w = w[prefixLen+size:]
	}
}
