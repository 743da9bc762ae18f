package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spoacme/spoacme/dataplane"
)

// aside decides whether this node's agent stands aside, so that HAProxy asks a peer's agent that is there as backup server: while
// the store is out of reach this agent hears of no new tokens, and the peer does.
type aside struct {
	log       *slog.Logger
	reachable func() error
	// servers lists the servers of the agent's backend in HAProxy.
	servers func(context.Context) ([]dataplane.Row, error)

	stands atomic.Bool
	// alone is set when nobody else was there after all: then nobody reaches the store, and what this agent has is the best
	// there is. It holds until the store answers, or the agents would take turns at standing aside.
	alone bool
}

const asideEvery = 500 * time.Millisecond

// Run decides again and again until ctx ends.
func (a *aside) Run(ctx context.Context) error {
	defer a.stands.Store(false)
	tick := time.NewTicker(asideEvery)
	defer tick.Stop()
	for {
		a.decide(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *aside) decide(ctx context.Context) {
	if a.reachable() == nil {
		a.alone = false
		if a.stands.Swap(false) {
			a.log.Info("this agent answers challenges again")
		}
		return
	}
	if a.alone {
		return
	}
	servers, err := a.servers(ctx)
	if err != nil && !errors.Is(err, dataplane.ErrNoRows) {
		return // a HAProxy that does not answer may be starting
	}
	up := 0
	for _, s := range servers {
		if s.State == "up" {
			up++
		}
	}
	switch {
	case a.stands.Load() && up == 0:
		a.alone = true
		a.stands.Store(false)
		a.log.Warn("no other agent is there: this one answers challenges with what it has")
	case !a.stands.Load() && up > 1:
		a.stands.Store(true)
		a.log.Warn("the store is out of reach: HAProxy's questions go to the other agent in its backend")
	}
}

// fit is what HAProxy's health checks are told.
func (a *aside) fit() bool { return a == nil || !a.stands.Load() }
