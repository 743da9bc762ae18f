package simulation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// fault is a kind of thing that goes wrong by itself.
type fault int

const (
	commitLost fault = iota // of the leader's and the nodes' writes
	commitUnanswered
	commitRefused
	commitSlow
	readFails
	readSlow
	watchSlow
	caLost // of requests to the CA
	caUnanswered
	caLate
	caFails
	caTwice
	stops // of answers: the process that waits for one is stopped or killed just then
	kills
	authorization // of the CA's decisions: refused, failed, 404
	processing
	forgets
)

// faults says of each in how many of 1000 cases it happens at most.
var faults = [...]struct {
	name string
	most int64
}{
	commitLost: {"commit lost", 100}, commitUnanswered: {"commit unanswered", 100}, commitRefused: {"commit refused", 50},
	commitSlow: {"commit slow", 200}, readFails: {"read fails", 50}, readSlow: {"read slow", 100}, watchSlow: {"watch slow", 200},
	caLost: {"ca lost", 100}, caUnanswered: {"ca unanswered", 150}, caLate: {"ca late", 100}, caFails: {"ca fails", 100},
	caTwice: {"ca twice", 100}, stops: {"stops", 30}, kills: {"kills", 20}, authorization: {"authorization", 150},
	processing: {"processing", 200}, forgets: {"forgets", 20},
}

// chaos is what goes wrong in a run. Some runs have much of one thing and nothing of another.
type chaos struct {
	of          [len(faults)]int64 // in so many of 1000 cases
	shortOrders bool               // pending orders expire within minutes
	slowCA      bool
	events      int // crashes and so on
	loss        bool
	// nothingDies is a run in which every process and the CA are well and only the way to the store is bad: then every
	// order has to come to a certificate.
	nothingDies bool
}

func newChaos(d dice) chaos {
	c := chaos{
		shortOrders: d.chance(300, "short orders", 0), slowCA: d.chance(300, "slow ca", 0),
		events: int(d.roll(12, "events", 0)), loss: d.chance(250, "loss", 0),
	}
	for f, about := range faults {
		switch d.roll(3, about.name, 0) {
		case 1:
			c.of[f] = d.roll(about.most/5+1, about.name, 1)
		case 2:
			c.of[f] = d.roll(about.most+1, about.name, 2)
		}
	}
	switch {
	case d.chance(30, "calm", 0):
		return chaos{nothingDies: true}
	case d.chance(60, "nothing dies", 0):
		well := chaos{slowCA: c.slowCA, events: c.events, nothingDies: true}
		for _, f := range []fault{commitUnanswered, commitSlow, readSlow, watchSlow} {
			well.of[f] = c.of[f]
		}
		well.of[commitLost] = min(c.of[commitLost], 30) // a write is tried four times
		return well
	}
	return c
}

// faulty is a chance of something going wrong, none once everything is healed.
func (w *world) faulty(f fault, about string, number int) bool {
	if !w.drawn(f, about, number) {
		return false
	}
	w.faults[f].Add(1)
	return true
}

func (w *world) drawn(f fault, about string, number int) bool {
	return !w.healed.Load() && w.dice.chance(w.chaos.of[f], about, number)
}

// census is how often things happened.
type census map[string]int64

// census counts what went wrong. w.mu is held.
func (w *world) census() census {
	all := census{}
	for f := range w.faults {
		all[faults[f].name] = w.faults[f].Load()
	}
	for name, n := range w.happened {
		all[name] = n
	}
	return all
}

func (c census) add(other census) {
	for name, n := range other {
		c[name] += n
	}
}

func (c census) String() string {
	var names []string
	for name := range c {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(c[b], c[a]), cmp.Compare(a, b)) })
	for i, name := range names {
		names[i] = fmt.Sprint(name, " ", c[name])
	}
	return strings.Join(names, ", ")
}
