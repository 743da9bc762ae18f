package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
)

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
	rec := c.catalog.issued(q.Certificate)
	if rec != nil && c.fulfils(rec, q) {
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

// fulfils reports whether a certificate is what was asked for: one that was issued since, by the leader's clock alone, or for an
// issue one that has all the names and is not due.
func (c *control) fulfils(rec *store.Certificate, q *store.Request) bool {
	if !rec.IssuedAt.Before(q.Done) || q.Op != store.RequestIssue {
		return !rec.IssuedAt.Before(q.Done)
	}
	w, wanted := lookup[*store.Wanted](c.catalog, store.KindWanted, q.Certificate)
	if wanted && rec.IssuedAt.Before(w.RenewAsked) || !time.Now().Before(cmp.Or(rec.RenewAt, rec.NotAfter)) {
		return false
	}
	return !slices.ContainsFunc(q.Spec.Domains, func(name string) bool { return !slices.Contains(rec.Domains, name) })
}

// orderProgress tells an order under way from one that failed since the request was carried out.
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
		if a.Error != "" && !a.Tried.Before(q.Done) {
			return progress{Step: "failed", Done: true, Result: view,
				Error: fmt.Sprintf("%s (next try at %s, without being asked)", a.Error, a.Next.Local().Format(time.DateTime))}
		}
		if a.Next.After(time.Now()) && a.Error != "" {
			return progress{Step: fmt.Sprintf("held back until %s: %s", a.Next.Local().Format(time.DateTime), a.Error), Result: view}
		}
	}
	if pause := c.pause(ctx, q); pause != "" {
		return progress{Step: pause, Result: view}
	}
	return progress{Step: "placing the order", Result: view}
}

// pause says which limit of the CA holds the order back, and until when; empty when none does, or when that can't be read.
func (c *control) pause(ctx context.Context, q *store.Request) string {
	w, ok := lookup[*store.Wanted](c.catalog, store.KindWanted, q.Certificate)
	if !ok {
		w = &store.Wanted{Name: q.Certificate, Spec: q.Spec}
	}
	l, err := c.store.List(ctx, store.KindBudget)
	if err != nil {
		return ""
	}
	budgets := map[string]*store.Budget{}
	for _, e := range l.Entries {
		budgets[e.Key.Name] = e.Record.(*store.Budget)
	}
	until, why := c.issuer.Held(w, c.catalog.issued(q.Certificate), budgets, time.Now())
	if until.IsZero() {
		return ""
	}
	return fmt.Sprintf("waiting until %s, %s", until.Local().Format(time.DateTime), why)
}

func (c *control) certificate(name string) *status.CertificateView {
	if v, ok := c.view().Certificate(name); ok {
		return &v
	}
	return nil
}
