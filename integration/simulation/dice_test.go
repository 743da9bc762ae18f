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
