package main

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/settings"
)

// structural is what a running sidecar can't change. In a fleet that is the CAs too: by them the store decides who may lead, when a
// term begins, and tells the others.
func structural(s settings.Settings) []string {
	all := []string{s.Agent, s.AgentCheck, s.AgentBackend, s.RowsBackend, s.HTTP, s.Store, s.Role, s.FleetKeys, s.IssuerKeys, fmt.Sprint(s.SealPlain, s.SealFromPlain), s.Node, s.Control, s.Probe}
	if s.StoreDir() == "" {
		all = append(all, s.CAs...)
	}
	return all
}

const settingsEvery = time.Second

// watchSettings reads the settings again for every new HAProxy process, until it has heard them from that process, and applies them.
func (sc *sidecar) watchSettings(ctx context.Context) error {
	d := &demand{store: sc.store, log: sc.log, node: sc.set.Node, alone: sc.fleet == nil}
	current, stored, said := sc.set, false, false
	var seen dataplane.Process // whose settings are in force
	tick := time.NewTicker(settingsEvery)
	defer tick.Stop()
	for {
		if !stored || d.stale() {
			err := d.want(ctx, current)
			if err != nil && !stored && !said && ctx.Err() == nil {
				said = true
				sc.log.Warn("what haproxy.cfg asks for is not in the store yet, trying again", "err", err)
			}
			stored = stored || err == nil
			said = said && err != nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-sc.engine:
			seen = dataplane.Process{}
		case <-tick.C:
		}
		if sc.hap == nil {
			continue
		}
		s, ok := sc.fresh(ctx, &seen)
		if !ok || reflect.DeepEqual(s, current) {
			continue
		}
		if st := structural(s); !slices.Equal(st, structural(sc.set)) && !slices.Equal(st, sc.runner.refused) {
			sc.next = s
			return errAnew
		}
		sc.apply(s)
		current, stored = s, false
	}
}

// fresh returns the settings of a process that were not heard from it yet. ok is false when there are none, or when it does not say:
// then it is asked again the next time, and what is in force stays. What was kept of an earlier process is no news.
func (sc *sidecar) fresh(ctx context.Context, seen *dataplane.Process) (s settings.Settings, ok bool) {
	now := sc.hap.Report().Process
	if now == *seen {
		return s, false
	}
	wake(sc.poked) // after a HELLO the rows may have been looked up in the process that is going
	s, problems, heard, err := sc.runner.read(ctx)
	if heard {
		*seen = now
	}
	if !heard || err != nil {
		return s, false
	}
	sc.runner.say(problems)
	return s, true
}

// apply takes over what can change while everything runs.
func (sc *sidecar) apply(s settings.Settings) {
	sc.runner.level.Set(s.LogLevel)
	sc.hap.SetPlace(s.CrtDir, s.CrtList)
	if sc.fleet != nil {
		s.CAs = sc.set.CAs // they differ when they came with what did not work
	}
	is, err := sc.issuerSettings(s)
	if err == nil {
		err = sc.issuer.Reconfigure(is)
	}
	if err != nil {
		sc.log.Error("the last good settings of the CA stay in force", "err", err)
	}
}
