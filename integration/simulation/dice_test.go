package simulation

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// dice is all chance of a run. A throw depends on the seed and on what it is about, never on which goroutine
// happens to ask first: so a seed can be replayed.
type dice uint64

// roll returns a number from 0 to n-1. Calls about the same thing are told apart by number.
func (d dice) roll(n int64, about string, number int) int64 {
	h := uint64(d) ^ 0xcbf29ce484222325
	for i := range len(about) {
		h = (h ^ uint64(about[i])) * 0x100000001b3
	}
	h += uint64(number) * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return int64((h ^ h>>31) % uint64(n))
}

// chance is true in so many of 1000 throws.
func (d dice) chance(permille int64, about string, number int) bool {
	return permille > 0 && d.roll(1000, about, number) < permille
}

// span is a time below most. Its last digits tell moments apart, so that hardly ever two things happen at once.
func (d dice) span(most time.Duration, about string, number int) time.Duration {
	return time.Duration(d.roll(int64(most), about, number)) + 1
}

// chaos is what goes wrong in a run, each in so many of 1000 cases. Some runs have much of one thing and nothing of another.
type chaos struct {
	commitLost, commitUnanswered, commitRefused, commitSlow int64 // of the leader's and the nodes' writes
	readFails, readSlow                                     int64
	watchSlow                                               int64
	caLost, caUnanswered, caLate, caFails, caTwice          int64 // of requests to the CA
	stops, kills                                            int64 // of answers: the process that waits for one is stopped or killed just then
	authorization, processing, forgets                      int64 // of the CA's decisions: refused, failed, 404
	shortOrders                                             bool  // pending orders expire within minutes
	slowCA                                                  bool
	events                                                  int // crashes and so on
	loss                                                    bool
}

func newChaos(d dice) chaos {
	some := func(most int64, about string) int64 {
		switch d.roll(3, about, 0) {
		case 0:
			return 0
		case 1:
			return d.roll(most/5+1, about, 1)
		}
		return d.roll(most+1, about, 2)
	}
	c := chaos{
		commitLost: some(100, "commit lost"), commitUnanswered: some(100, "commit unanswered"),
		commitRefused: some(50, "commit refused"), commitSlow: some(200, "commit slow"),
		readFails: some(50, "read fails"), readSlow: some(100, "read slow"), watchSlow: some(200, "watch slow"),
		caLost: some(100, "ca lost"), caUnanswered: some(150, "ca unanswered"), caLate: some(100, "ca late"), caFails: some(100, "ca fails"),
		caTwice: some(100, "ca twice"), stops: some(30, "stops"), kills: some(20, "kills"),
		authorization: some(150, "authorization"), processing: some(200, "processing"), forgets: some(20, "forgets"),
		shortOrders: d.chance(300, "short orders", 0), slowCA: d.chance(300, "slow ca", 0),
		events: int(d.roll(12, "events", 0)), loss: d.chance(250, "loss", 0),
	}
	if d.chance(30, "calm", 0) {
		return chaos{}
	}
	return c
}

// trace is what happened in a run, for people. Nil records nothing.
type trace struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func (tr *trace) add(format string, args ...any) {
	if tr == nil {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, fmt.Sprintf("%14.6f  ", time.Since(tr.start).Seconds())+fmt.Sprintf(format, args...))
}

// Write takes what the issuers log.
func (tr *trace) Write(b []byte) (int, error) {
	tr.add("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}
