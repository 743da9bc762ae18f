package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/file"
)

// keepCopy opens this node's own copy of account, open orders and certificates, one for each store that it has used.
// Without it everything works, but a lost account can't be put back.
func (r *records) keepCopy(s settings.Settings, log *slog.Logger) {
	if s.Role == roleEdge {
		return // it never leads, and may not see the account
	}
	sum := sha256.Sum256([]byte(s.Store))
	dir := filepath.Join(s.State, "copy-"+hex.EncodeToString(sum[:4]))
	c, err := file.Open(dir, file.Options{Node: s.Node, Log: log, ScanEvery: time.Hour})
	if err != nil {
		log.Error("no copy of account and certificates is kept", "err", err)
		return
	}
	r.copy = c
	end := r.close
	r.close = func() error { return errors.Join(end(), c.Close()) }
}

// peers is the fleet as the issuer sees it.
type peers struct {
	*consul.Store
	log *slog.Logger
}

func (p peers) Offers(ctx context.Context, name string) ([]issuer.Offer, error) {
	found, unreadable, err := p.Store.Offers(ctx, name)
	for _, err := range unreadable {
		p.log.Debug("an offer is left alone", "err", err)
	}
	offers := make([]issuer.Offer, len(found))
	for i, o := range found {
		offers[i] = issuer.Offer{Node: o.Node, Certificate: o.Certificate}
	}
	return offers, err
}

// rescue gives the issuer what it needs to take back what the store has lost.
func (sc *sidecar) rescue(c *issuer.Config) {
	if sc.hap != nil {
		c.Disk = sc.hap.OnDisk
	}
	if sc.store.fleet != nil {
		c.Fleet = peers{sc.store.fleet, sc.log}
	}
	c.Copy = sc.store.copy
}

// newShelf offers what this node has and the fleet's store has not; nil where there is nothing to offer.
func (sc *sidecar) newShelf() *issuer.Shelf {
	st := sc.store.fleet
	if st == nil || sc.hap == nil {
		return nil
	}
	return &issuer.Shelf{
		Store: sc.store, Disk: sc.hap.OnDisk, Copy: sc.store.copy, Stored: sc.catalog.issued, Broken: sc.catalog.unusable,
		Names: sc.catalog.names,
		Offer: st.Offer, Withdraw: st.Withdraw, Logger: sc.log,
		Offered: func(ctx context.Context) ([]string, error) {
			offers, _, err := st.Offers(ctx, "")
			var names []string
			for _, o := range offers {
				if o.Node == sc.set.Node {
					names = append(names, o.Certificate.Name)
				}
			}
			return slices.Compact(names), err
		},
	}
}

// issued returns what is known of a stored certificate, nil when there is none.
func (c *catalog) issued(name string) *store.Certificate {
	r, _ := lookup[*store.Certificate](c, store.KindIssued, name)
	return r
}

// keep starts what keeps beside the store what the store may lose.
func (sc *sidecar) keep(ctx context.Context, g *errgroup.Group) {
	if sc.store.copy != nil {
		g.Go(func() error { return issuer.KeepCopy(ctx, sc.store, sc.store.copy, sc.log) })
	}
	if sc.shelf != nil {
		g.Go(func() error { return sc.shelf.Run(ctx) })
		g.Go(func() error { return sc.store.fleet.FollowQuestions(ctx, sc.shelf.Answer) })
	}
}
