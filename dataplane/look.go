package dataplane

import (
	"context"
	"fmt"
)

// What `check` reads beside the inventory. Nothing here changes anything.

// Server is a server of a backend as HAProxy sees it.
type Server struct {
	Name    string
	Address string // "127.0.0.1:9765"; "unix" for a socket
	Status  string // "UP", "DOWN", "no check", …
	Check   string // what its last health check said: "L4CON Connection refused"
}

// Servers reads the servers of a backend; ErrNoRows when there is no such backend.
func (h *HAProxy) Servers(ctx context.Context, backend string) ([]Server, error) {
	a, err := arg(backend)
	if err != nil {
		return nil, err
	}
	answer, err := h.raw(ctx, "show stat "+a+" 4 -1")
	if has(err, "No such proxy") {
		return nil, fmt.Errorf("%w: there is no backend %s; add it to haproxy.cfg and reload", ErrNoRows, backend)
	}
	if err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	records, err := statistics(string(answer))
	if err != nil {
		return nil, err
	}
	var servers []Server
	for _, r := range records {
		if r.get("pxname") != backend || r.get("svname") == "" {
			continue
		}
		check := r.get("check_status")
		if r.get("last_chk") != "" {
			check += " " + r.get("last_chk")
		}
		servers = append(servers, Server{line(r.get("svname")), line(r.get("addr")), line(r.get("status")), line(check)})
	}
	return servers, nil
}

// Buffer returns tune.bufsize of the running HAProxy in bytes: what a command with a certificate must fit.
func (h *HAProxy) Buffer(ctx context.Context) (int, error) {
	p, err := h.Process(ctx)
	if err != nil {
		return 0, err
	}
	if err := h.take(ctx); err != nil {
		return 0, err
	}
	defer h.release()
	return h.bufsize(ctx, p)
}
