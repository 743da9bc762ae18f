package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// HTTP serves /metrics, /healthz, /readyz and /status to whoever may connect.
type HTTP struct {
	View   func() View         // the current view
	Gather prometheus.Gatherer // what /metrics shows
	Logger *slog.Logger        // may be nil
}

// httpConnections is how many clients there are at once; more wait.
const httpConnections = 100

// Serve answers on ln until ctx ends, then closes it.
func (h HTTP) Serve(ctx context.Context, ln net.Listener) error {
	return ServeHTTP(ctx, ln, h.Handler(), h.logger())
}

// ServeHTTP serves a handler on ln, with limits and deadlines, until ctx ends, then closes ln.
func ServeHTTP(ctx context.Context, ln net.Listener, handler http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler,
		ReadTimeout:       5 * time.Second,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(ln, httpConnections)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	}
	return nil
}

func (h HTTP) logger() *slog.Logger {
	if h.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Logger
}

// Handler returns the four pages. Nothing on them changes anything.
func (h HTTP) Handler() http.Handler {
	mux := http.NewServeMux()
	if h.Gather != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(h.Gather, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second}))
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		v := h.View()
		code := http.StatusOK
		if !v.Ready() {
			code = http.StatusServiceUnavailable
		}
		text(w, code, ReadyLines(v))
	})
	mux.HandleFunc("GET /status", h.status)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "/status  /readyz  /healthz  /metrics\n")
	})
	return mux
}

// status answers with JSON, and with the table when a browser or ?format=text asks.
func (h HTTP) status(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	v := h.View()
	accept := r.Header.Get("Accept")
	if r.FormValue("format") == "text" || strings.HasPrefix(accept, "text/") {
		if err := Table(&b, v); err != nil {
			http.Error(w, "render the table: "+err.Error(), http.StatusInternalServerError)
			return
		}
		text(w, http.StatusOK, b.String())
		return
	}
	if err := JSON(&b, v); err != nil {
		http.Error(w, "render the status: "+err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, http.StatusOK, "application/json", b.String())
}

// JSON writes the view, indented.
func JSON(w interface{ Write([]byte) (int, error) }, v View) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// ReadyLines writes a line per condition: "ok NAME" or "FAIL NAME: what to do".
func ReadyLines(v View) string {
	var b strings.Builder
	for _, c := range v.Conditions {
		if c.OK {
			fmt.Fprintf(&b, "ok %s\n", c.Name)
		} else {
			fmt.Fprintf(&b, "FAIL %s: %s\n", c.Name, c.Message)
		}
	}
	if v.Ready() {
		b.WriteString("ready\n")
	} else {
		b.WriteString("not ready\n")
	}
	return b.String()
}

func text(w http.ResponseWriter, code int, body string) {
	send(w, code, "text/plain; charset=utf-8", body)
}

func send(w http.ResponseWriter, code int, contentType, body string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
}
