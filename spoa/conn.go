package spoa

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/negasus/haproxy-spoe-go/frame"
)

const (
	// inHand is how many questions of one connection may be unanswered before
	// no more is read from it. HAProxy keeps to 20 (max-waiting-frames).
	inHand = 64

	// smallBuffer is what a connection keeps for reading between frames.
	smallBuffer = 2048

	// keptBatch is the largest buffer that a connection keeps for writing.
	keptBatch = 16 << 10
)

// conn is the connection that the library gets to see. It hands over whole
// checked frames and then end of file; the library learns of no other error.
// One goroutine reads; any number write, each a whole frame.
type conn struct {
	net.Conn
	agent *Agent

	buf     []byte // buf[start:end] is received and not handed over
	start   int
	end     int
	frame   []byte // what is left to hand over of the current frame, within buf
	greeted bool   // a HELLO was handed over

	hands chan struct{} // one element for each question that is unanswered

	out     sync.Mutex
	ready   []byte // whole frames to be sent
	spare   []byte // the buffer of the last ones
	sending bool   // somebody is at it

	mu      sync.Mutex
	drainBy time.Time // zero until the agent stops
	closed  bool
}

func newConn(c net.Conn, a *Agent) *conn {
	return &conn{Conn: c, agent: a, hands: make(chan struct{}, inHand)}
}

// Read hands over bytes of the current frame, and never of two at once.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.frame) == 0 {
		if err := c.next(); err != nil {
			c.agent.ended(c, err)
			return 0, io.EOF
		}
	}
	n := copy(p, c.frame)
	c.frame = c.frame[n:]
	return n, nil
}

// Write sends one frame, together with those of others that are ready: HAProxy asks many questions at once, and
// system calls are most of what an answer costs. A peer that does not take them in time is cut off.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) > prefixLen && frame.Type(p[prefixLen]) == frame.TypeAgentAck {
		defer func() { <-c.hands }()
	}
	c.out.Lock()
	c.ready = append(c.ready, p...)
	if c.sending { // whoever sends takes ours along
		c.out.Unlock()
		return len(p), nil
	}
	c.sending = true
	c.out.Unlock()
	runtime.Gosched() // answers that are about to be ready join in
	if err := c.send(); err != nil {
		_ = c.Close() // the error of the write is the one that counts
		return 0, err
	}
	return len(p), nil
}

// send writes what is ready until nothing is.
func (c *conn) send() error {
	for {
		c.out.Lock()
		batch := c.ready
		if len(batch) == 0 {
			c.sending = false
			c.out.Unlock()
			return nil
		}
		c.ready, c.spare = c.spare[:0], nil
		c.out.Unlock()
		err := c.Conn.SetWriteDeadline(time.Now().Add(c.agent.cfg.WriteTimeout))
		if err == nil {
			_, err = c.Conn.Write(batch)
		}
		c.out.Lock()
		if cap(batch) <= keptBatch {
			c.spare = batch
		}
		if err != nil {
			c.ready, c.sending = nil, false
			c.out.Unlock()
			return err
		}
		c.out.Unlock()
	}
}

// Close may be called more than once.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	_ = c.Conn.Close() // nothing can be done about it, and the peer may be gone
	return nil
}

// drain lets frames that have been sent be answered until by, and then makes
// Read return end of file.
func (c *conn) drain(by time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainBy = by
	_ = c.Conn.SetReadDeadline(by) // fails only on a closed connection
}

// next waits for a frame, checks it and makes it c.frame.
func (c *conn) next() error {
	var by time.Time // when the frame must be complete; zero while nothing of it is here
	if err := c.fill(prefixLen, &by); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(c.buf[c.start:])
	if size < minBody || size > maxBody {
		return errLength
	}
	whole := prefixLen + int(size)
	if err := c.fill(whole, &by); err != nil {
		return err
	}
	got := c.buf[c.start : c.start+whole]
	h, err := inspect(got[prefixLen:])
	if err != nil {
		return err
	}
	if (h.kind == frame.TypeHaproxyHello) == c.greeted {
		return errSequence
	}
	switch h.kind {
	case frame.TypeHaproxyHello:
		c.greeted = true
		c.agent.greet(h)
		if fit := c.agent.cfg.Fit; h.healthcheck && fit != nil && !fit() {
			return errUnfit
		}
	case frame.TypeNotify:
		c.hands <- struct{}{} // every question is answered in bounded time
	}
	c.frame = got
	c.start += whole
	return nil
}

// fill reads until n bytes of the frame are there.
func (c *conn) fill(n int, by *time.Time) error {
	for c.end-c.start < n {
		c.makeRoom(n)
		wait := time.Now()
		switch {
		case c.start < c.end:
			if by.IsZero() {
				*by = wait.Add(c.agent.cfg.FrameTimeout)
			}
			wait = *by
		case c.greeted:
			wait = wait.Add(c.agent.cfg.IdleTimeout)
		default:
			wait = wait.Add(c.agent.cfg.FrameTimeout)
		}
		if err := c.setReadDeadline(wait); err != nil {
			return err
		}
		m, err := c.Conn.Read(c.buf[c.end:])
		c.end += m
		if m == 0 && err != nil {
			return c.classify(err)
		}
	}
	return nil
}

// makeRoom sees to it that a frame of n bytes fits behind c.start, and that a
// connection between two frames holds on to no large buffer.
func (c *conn) makeRoom(n int) {
	have := c.buf[c.start:c.end]
	switch size := max(n, smallBuffer); {
	case len(c.buf) < size, len(have) == 0 && len(c.buf) > size:
		fresh := make([]byte, size)
		c.end = copy(fresh, have)
		c.buf = fresh
	default:
		c.end = copy(c.buf, have)
	}
	c.start = 0
}

// setReadDeadline keeps the deadline of a connection that is being drained.
func (c *conn) setReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.drainBy.IsZero() && c.drainBy.Before(t) {
		t = c.drainBy
	}
	return c.Conn.SetReadDeadline(t)
}

// classify says what the failure of a read means: an idle connection that
// nobody needs any longer is at its end, a frame that stopped halfway is not
// as it should be.
func (c *conn) classify(err error) error {
	c.mu.Lock()
	draining := !c.drainBy.IsZero()
	c.mu.Unlock()
	switch {
	case draining:
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded) && c.end > c.start:
		return errSlow
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errIdle
	default:
		return err
	}
}
