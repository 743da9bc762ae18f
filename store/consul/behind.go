package consul

import (
	"slices"
	"sync"
	"time"
)

// ackLag is how long a live node may take to say which change of the feed it has seen: its ack is not rewritten for that
// alone, but when it renews its session.
const ackLag = renews + 3*time.Second

// past is the changes of the feed as this process saw them come, for ackLag and one before.
type past struct {
	mu   sync.Mutex
	seen []sighting
}

// sighting is when the feed was first seen to be at a change.
type sighting struct {
	epoch string
	seq   uint64
	at    time.Time
}

// saw notes the feed. A number that goes back within an epoch is of another history: nothing of the old one counts.
func (p *past) saw(epoch string, seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if n := len(p.seen); n > 0 {
		last := p.seen[n-1]
		if last.epoch == epoch && last.seq == seq {
			return
		}
		if last.epoch == epoch && last.seq > seq {
			p.seen = nil
		}
	}
	p.seen = append(p.seen, sighting{epoch, seq, now})
	due := 0 // the newest that every live node should have said
	for i, s := range p.seen {
		if now.Sub(s.at) >= ackLag {
			due = i
		}
	}
	p.seen = slices.Delete(p.seen, 0, due)
}

// behind reports whether a live node has not said that it has seen a change, although it had the time to say so.
func (p *past) behind(r ackRecord) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, s := range slices.Backward(p.seen) {
		if r.Epoch == s.epoch && r.Seq >= s.seq {
			return false
		}
		if now.Sub(s.at) >= ackLag {
			// Numbers go on from term to term: with a higher one it has seen a term that this process has not.
			return r.Seq <= s.seq || slices.ContainsFunc(p.seen, func(o sighting) bool { return o.epoch == r.Epoch })
		}
	}
	return false
}
