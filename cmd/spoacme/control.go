package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spoacme/spoacme/issuer"
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
	issuer  *issuer.Issuer
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
	rec := c.forced(q)
	if rec == nil {
		if err := c.refuse(q); err != nil {
			reply(w, http.StatusConflict, failure{err.Error()})
			return
		}
		rec = &store.Request{ID: rand.Text(), Op: q.Op, Certificate: q.Certificate, Spec: q.Spec, Force: q.Force, Asked: time.Now().UTC()}
	}
	if err := c.store.Commit(r.Context(), nil, nil, []store.Op{store.Put(rec)}); err != nil {
		reply(w, http.StatusServiceUnavailable, failure{fmt.Sprintf("store the request: %v", err)})
		return
	}
	reply(w, http.StatusOK, ticket{rec.ID})
}

// forced returns a removal that the fleet has carried out and this node has not, because its HAProxy needs the certificate, when the same
// is asked for once more with force: it goes on with force. The store has no such certificate any more that could be removed.
func (c *control) forced(q request) *store.Request {
	if q.Op != store.RequestRemove || !q.Force || c.removal == nil {
		return nil
	}
	for _, old := range all[*store.Request](c.catalog) {
		if err, tried := c.removal.outcome(old.ID); old.Certificate == q.Certificate && tried && err != nil {
			again := *old
			again.Force = true
			return &again
		}
	}
	return nil
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
