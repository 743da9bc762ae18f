package status

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// closeWhenDone closes c when ctx ends, unless the returned function was called before.
func closeWhenDone(ctx context.Context, c io.Closer) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.Close() })
}

// pause waits before the next try to accept, and fails when ctx ended.
func pause(ctx context.Context) error {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// accept runs handle for every connection, at most most at once, until ctx ends or ln fails for good,
// then closes ln. It returns when all of them have: their context ends with ctx.
func accept(ctx context.Context, ln net.Listener, most int, handle func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer ln.Close()
	defer closeWhenDone(ctx, ln)()
	slots := make(chan struct{}, most)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, or the client went away
			<-slots
			if pause(ctx) != nil {
				return nil
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer closeWhenDone(ctx, conn)()
			handle(ctx, conn)
		})
	}
}
