package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// client speaks to the sidecar on this machine.
type client struct {
	socket string
	http   *http.Client
}

// maxAnswer is far above the status of 10,000 certificates.
const maxAnswer = 64 << 20

func newClient(socket string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &client{socket, &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: dial}}}
}

// call sends in (nil: GET) and reads the answer into out.
func (c *client) call(ctx context.Context, path string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://spoacme"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(b, &f) != nil || f.Error == "" {
			return fmt.Errorf("the sidecar answered %s: use a spoacme of the same version", resp.Status)
		}
		return errors.New(f.Error)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the sidecar's answer: %w", err)
	}
	return nil
}

// explain turns what net/http says into what to do.
func (c *client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no sidecar answers at %s: start 'spoacme run', or name its socket with --control", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not connect to %s: run this as root or as the sidecar's user or group", c.socket)
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the sidecar at %s does not answer: see its log", c.socket)
	}
	return fmt.Errorf("ask the sidecar at %s: %w", c.socket, err)
}
