package issuer

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

const (
	orderWindow    = 3 * time.Hour
	ordersAtPublic = 250 // Let's Encrypt allows 300
	duplicatesMost = 4   // Let's Encrypt allows 5 certificates a week for the same names
)

// orderLimit is how many orders may be placed at a CA within orderWindow; ok is false for any number.
func (ca CA) orderLimit() (n int, ok bool) {
	switch {
	case ca.Orders != 0:
		return ca.Orders, ca.Orders > 0
	default:
		u, err := url.Parse(ca.Directory)
		return ordersAtPublic, err == nil && strings.HasSuffix(u.Hostname(), ".letsencrypt.org")
	}
}

// room is how many orders may be placed now; with none, when to ask again.
func room(ca CA, b *store.Budget, now time.Time) (n int, at time.Time) {
	if b != nil && b.Until.After(now) {
		return 0, b.Until
	}
	limit, ok := ca.orderLimit()
	if !ok {
		return int(^uint(0) >> 1), time.Time{}
	}
	var used []time.Time
	if b != nil {
		used = recent(b.Orders, now)
	}
	if n = limit - len(used); n > 0 {
		return n, time.Time{}
	}
	return 0, used[len(used)-limit].Add(orderWindow)
}

// spend adds n orders to what is used; a negative n gives the last ones back.
func spend(b store.Budget, n int, now time.Time) *store.Budget {
	b.Orders = recent(b.Orders, now)
	for range n {
		b.Orders = append(b.Orders, now)
	}
	if n < 0 {
		b.Orders = b.Orders[:max(0, len(b.Orders)+n)]
	}
	return &b
}

// recent drops what no longer counts, and what a wrong clock has put into the future.
func recent(orders []time.Time, now time.Time) []time.Time {
	return slices.DeleteFunc(slices.Clone(orders), func(at time.Time) bool {
		return now.Sub(at) >= orderWindow || at.After(now.Add(5*time.Minute))
	})
}

// duplicates says until when a further certificate for the same names must wait; the zero time means that it needs not.
func duplicates(ca CA, c *facts, now time.Time) time.Time {
	if _, limited := ca.orderLimit(); !limited || c == nil {
		return time.Time{}
	}
	var last []time.Time
	for _, at := range append(slices.Clone(c.before), c.issuedAt) {
		if now.Sub(at) < week && !at.After(now) {
			last = append(last, at)
		}
	}
	if len(last) < duplicatesMost {
		return time.Time{}
	}
	return last[len(last)-duplicatesMost].Add(week)
}
