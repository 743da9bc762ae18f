package dataplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/haproxytech/client-native/v5/runtime"
	"github.com/haproxytech/client-native/v5/runtime/options"
)

const (
	maxAnswer      = 32 << 20         // bytes; 10,000 certificates in a crt-list are about 1 MB
	commandTimeout = 10 * time.Second // of one command; client-native's own is 30 s
	commitTimeout  = 29 * time.Second // a commit prints dots for as long as it takes
)

var (
	errTruncated = errors.New("HAProxy's answer ends in the middle")
	errTooLong   = errors.New("HAProxy's answer does not end")
)

// wire is how client-native reaches HAProxy: through a socket of our own, so that what the library
// does not do is done for it. The library reads without a limit, takes a connection that breaks for
// the end of the answer, and knows no context. A wire hands it whole answers only: at most maxAnswer
// bytes, ended by the empty line that HAProxy puts after every command, within the context's time.
// Everything else is an error of the exchange.
//
// The socket is an abstract one with a random name and serves this process only.
type wire struct {
	socket string // HAProxy's
	relay  *net.UnixListener
	client runtime.SingleRuntime
	lock   chan struct{} // holds one token: one exchange at a time
	now    atomic.Pointer[exchange]
	ended  chan struct{} // closed when accept has returned
}

// exchange is one command and its answer.
type exchange struct {
	ctx    context.Context
	done   chan struct{}
	answer []byte
	err    error
}

func newWire(socket string) (*wire, error) {
	name := make([]byte, 16)
	if _, err := rand.Read(name); err != nil {
		return nil, err
	}
	address := "@spoacme-" + hex.EncodeToString(name)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open relay: %w", err)
	}
	w := &wire{socket: socket, relay: ln, lock: make(chan struct{}, 1), ended: make(chan struct{})}
	if err := w.client.Init(address, 0, 0, options.RuntimeOptions{DoNotCheckRuntimeOnInit: true}); err != nil {
		return nil, errors.Join(fmt.Errorf("open relay: %w", err), ln.Close())
	}
	go w.accept()
	return w, nil
}

func (w *wire) close() error {
	err := w.relay.Close()
	<-w.ended
	return err
}

// do runs fn, which gives client-native one command, and returns HAProxy's whole answer. The error is the
// exchange's, else *refusal when HAProxy answered with an error or with what client-native does not accept.
func (w *wire) do(ctx context.Context, timeout time.Duration, fn func(*runtime.SingleRuntime) error) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case w.lock <- struct{}{}:
		defer func() { <-w.lock }()
	case <-ctx.Done():
		return nil, w.explain(ctx.Err())
	}
	x := &exchange{ctx: ctx, done: make(chan struct{})}
	w.now.Store(x)
	err := fn(&w.client)
	if !w.now.CompareAndSwap(x, nil) {
		<-x.done
	}
	switch {
	case x.err != nil:
		return nil, w.explain(x.err)
	case len(x.answer) == 0 && err != nil:
		return nil, scrub(err)
	}
	if r := refused(x.answer); r != nil || err == nil {
		return x.answer, r
	}
	return x.answer, &refusal{line(string(x.answer))}
}

// accept serves client-native. It tries a command twice when a connection breaks; the second one meets
// a closed door, for whether the first one was carried out is not known.
func (w *wire) accept() {
	defer close(w.ended)
	for {
		c, err := w.relay.AcceptUnix()
		if err != nil {
			return
		}
		if !own(c) {
			c.Close()
			continue
		}
		if x := w.now.Swap(nil); x != nil {
			x.answer, x.err = w.carry(x, c)
			if x.err == nil {
				_, _ = c.Write(x.answer)
			}
			close(x.done)
		}
		c.Close()
	}
}

// own reports whether the peer is this process.
func own(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *syscall.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return false
	}
	return int(cred.Pid) == os.Getpid()
}

// carry passes the command of c on to HAProxy and returns the answer.
func (w *wire) carry(x *exchange, c net.Conn) ([]byte, error) {
	var d net.Dialer
	up, err := d.DialContext(x.ctx, "unix", w.socket)
	if err != nil {
		return nil, err
	}
	defer up.Close()
	stop := context.AfterFunc(x.ctx, func() { _ = up.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sent := make(chan struct{})
	go func() { // ends when carry closes up, or do's caller closes c
		defer close(sent)
		_, _ = io.Copy(up, c)
	}()
	answer, err := readAnswer(up)
	_ = c.SetReadDeadline(time.Unix(1, 0))
	up.Close()
	<-sent
	if x.ctx.Err() != nil {
		return nil, x.ctx.Err()
	}
	return answer, err
}

// readAnswer reads until HAProxy closes, and checks that the answer is whole.
func readAnswer(r io.Reader) ([]byte, error) {
	var all []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if len(all) > maxAnswer {
			return nil, errTooLong
		}
		if err == nil {
			continue
		}
		// "set severity-output", which client-native sends first, answers an empty line; the
		// command's own answer ends with another.
		if bytes.HasSuffix(all, []byte("\n\n")) {
			return all, nil
		}
		if tooBig(all) {
			return all, nil
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			return nil, err
		}
		return nil, errTruncated
	}
}
