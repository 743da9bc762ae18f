package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
)

// The local API: HTTP and JSON over the control socket. Whoever may connect to the socket may ask for certificates; no
// answer holds a key.
//
//	GET  /status          status.View
//	POST /requests        request → ticket
//	GET  /requests/{id}   progress
//	POST /forget          forgetting → {}
//	POST /probe           {} → probe, whose token is answered until the client has read enough

// request is what a command asks for.
type request struct {
	Op          string     `json:"op"`
	Certificate string     `json:"certificate"`
	Spec        store.Spec `json:"spec,omitzero"`
	Force       bool       `json:"force,omitempty"`
}

// ticket names a request that was accepted.
type ticket struct {
	ID string `json:"id"`
}

// progress says how far a request has come.
type progress struct {
	Step   string                  `json:"step"` // one line for a person
	Done   bool                    `json:"done"` // nothing more will happen
	Error  string                  `json:"error,omitempty"`
	Result *status.CertificateView `json:"certificate,omitempty"`
}

// failure is the body of every answer that is not 200.
type failure struct {
	Error string `json:"error"`
}

const maxRequestBytes = 64 << 10

type control struct {
	store   store.Store
	catalog *catalog
	removal *removal
	fleet   *fleet  // nil without a fleet
	tokens  *tokens // nil without HAProxy
	view    func() status.View
	log     *slog.Logger
}

// Serve answers on ln until ctx ends.
func (c *control) Serve(ctx context.Context, ln net.Listener) error {
	return status.ServeHTTP(ctx, ln, c.handler(), c.log)
}

func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		if c.fleet != nil {
			c.fleet.refresh(r.Context(), nodesFresh)
		}
		reply(w, http.StatusOK, c.view())
	})
	mux.HandleFunc("POST /forget", c.forget)
	mux.HandleFunc("POST /requests", c.accept)
	mux.HandleFunc("GET /requests/{id}", c.follow)
	mux.HandleFunc("POST /probe", c.probe)
	return mux
}

// accept stores a request for the leader to carry out.
func (c *control) accept(w http.ResponseWriter, r *http.Request) {
	var q request
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		reply(w, http.StatusBadRequest, failure{"the request can't be read: use a spoacme of the same version"})
		return
	}
	if err := c.refuse(q); err != nil {
		reply(w, http.StatusConflict, failure{err.Error()})
		return
	}
	rec := &store.Request{ID: rand.Text(), Op: q.Op, Certificate: q.Certificate, Spec: q.Spec, Force: q.Force, Asked: time.Now().UTC()}
	if err := c.store.Commit(r.Context(), nil, nil, []store.Op{store.Put(rec)}); err != nil {
		reply(w, http.StatusServiceUnavailable, failure{fmt.Sprintf("store the request: %v", err)})
		return
	}
	reply(w, http.StatusOK, ticket{rec.ID})
}

// forget drops what a node that is gone left behind.
func (c *control) forget(w http.ResponseWriter, r *http.Request) {
	var f forgetting
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes)).Decode(&f); err != nil {
		reply(w, http.StatusBadRequest, failure{"the request can't be read: use a spoacme of the same version"})
		return
	}
	if c.fleet == nil {
		reply(w, http.StatusConflict, failure{"there is no fleet: SPOACME_STORE is a directory"})
		return
	}
	if err := c.fleet.store.Forget(r.Context(), f.Node); err != nil {
		reply(w, http.StatusConflict, failure{err.Error()})
		return
	}
	reply(w, http.StatusOK, struct{}{})
}

// refuse says what can be said at once; everything else is for the leader to say.
func (c *control) refuse(q request) error {
	if err := store.ValidName(q.Certificate); err != nil {
		return err
	}
	if q.Op == store.RequestIssue {
		return nil
	}
	if loaded, _ := c.catalog.state(); loaded && !c.catalog.knows(q.Certificate) {
		return fmt.Errorf("there is no certificate %q: 'spoacme status' lists them", q.Certificate)
	}
	return nil
}

// follow reports how far a request has come, from the records and from what HAProxy serves.
func (c *control) follow(w http.ResponseWriter, r *http.Request) {
	e, err := c.store.Get(r.Context(), store.Key{Kind: store.KindRequest, Name: r.PathValue("id")})
	switch {
	case errors.Is(err, store.ErrAbsent):
		reply(w, http.StatusNotFound, failure{"no such request: it was carried out a while ago; see 'spoacme status'"})
		return
	case err != nil:
		reply(w, http.StatusServiceUnavailable, failure{err.Error()})
		return
	}
	reply(w, http.StatusOK, c.progress(r.Context(), e.Record.(*store.Request)))
}

func (c *control) progress(ctx context.Context, q *store.Request) progress {
	switch {
	case q.Error != "":
		return progress{Step: "refused", Done: true, Error: q.Error}
	case q.Done.IsZero():
		return progress{Step: "waiting for the leader"}
	}
	view := c.certificate(q.Certificate)
	if q.Op == store.RequestRemove {
		err, tried := c.removal.outcome(q.ID)
		switch {
		case !tried:
			return progress{Step: "taking it out of HAProxy", Result: view}
		case err != nil:
			return progress{Step: "failed", Done: true, Error: err.Error() + "; it is tried again"}
		}
		return progress{Step: "removed", Done: true}
	}
	rec, ok := lookup[*store.Certificate](c.catalog, store.KindIssued, q.Certificate)
	if ok && rec.IssuedAt.After(q.Asked) {
		if view != nil && view.Served != nil && view.Served.Fingerprint == rec.Fingerprint {
			return progress{Step: "served by HAProxy", Done: true, Result: view}
		}
		p := progress{Step: "issued, swapping it into HAProxy", Result: view}
		if view != nil && view.Error != "" {
			p.Step += ": " + view.Error
		}
		return p
	}
	return c.orderProgress(ctx, q, view)
}

// orderProgress tells an order under way from one that failed since the request was made.
func (c *control) orderProgress(ctx context.Context, q *store.Request, view *status.CertificateView) progress {
	if e, err := c.store.Get(ctx, store.Key{Kind: store.KindOrder, Name: q.Certificate}); err == nil {
		o := e.Record.(*store.Order)
		switch {
		case o.Finalized:
			return progress{Step: "the CA is signing", Result: view}
		case o.URL != "":
			return progress{Step: "the CA is checking the names", Result: view}
		}
	}
	if e, err := c.store.Get(ctx, store.Key{Kind: store.KindAttempt, Name: q.Certificate}); err == nil {
		a := e.Record.(*store.Attempt)
		if a.Error != "" && a.Tried.After(q.Asked) {
			return progress{Step: "failed", Done: true, Result: view,
				Error: fmt.Sprintf("%s (next try at %s, without being asked)", a.Error, a.Next.Local().Format(time.DateTime))}
		}
		if a.Next.After(time.Now()) && a.Error != "" {
			return progress{Step: fmt.Sprintf("held back until %s: %s", a.Next.Local().Format(time.DateTime), a.Error), Result: view}
		}
	}
	if pause := c.pause(ctx); pause != "" {
		return progress{Step: pause, Result: view}
	}
	return progress{Step: "placing the order", Result: view}
}

// pause says which CA wants no orders now, and until when; empty when none does, or when that can't be read.
func (c *control) pause(ctx context.Context) string {
	l, err := c.store.List(ctx, store.KindBudget)
	if err != nil {
		return ""
	}
	for _, e := range l.Entries {
		if b := e.Record.(*store.Budget); b.Until.After(time.Now()) {
			return fmt.Sprintf("waiting until %s, which the CA demands (%s): %s", b.Until.Local().Format(time.DateTime), b.CA, b.Error)
		}
	}
	return ""
}

func (c *control) certificate(name string) *status.CertificateView {
	if v, ok := c.view().Certificate(name); ok {
		return &v
	}
	return nil
}

// probe is a challenge that no CA asked for: with it `check` sees whether HAProxy leads to the sidecar.
type probe struct {
	Token   string `json:"token"`
	KeyAuth string `json:"key_authorization"`
}

// probeFor is how long a probe is answered at most. The client ends it sooner by hanging up.
const probeFor = 10 * time.Second

func (c *control) probe(w http.ResponseWriter, r *http.Request) {
	// Only with the body read does net/http notice that the client hangs up.
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if c.tokens == nil {
		reply(w, http.StatusConflict, failure{"this sidecar has no HAProxy"})
		return
	}
	p := probe{Token: "spoacme-check-" + rand.Text()}
	p.KeyAuth = p.Token + "." + rand.Text()
	withdraw, err := c.tokens.publishProbe(p)
	if err != nil {
		reply(w, http.StatusServiceUnavailable, failure{err.Error()})
		return
	}
	defer withdraw()
	reply(w, http.StatusOK, p)
	_ = http.NewResponseController(w).Flush()
	ctx, cancel := context.WithTimeout(r.Context(), probeFor)
	defer cancel()
	<-ctx.Done()
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(body); err != nil {
		_, _ = io.WriteString(w, "\n")
	}
}
