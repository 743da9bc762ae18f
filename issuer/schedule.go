package issuer

import (
	"time"

	"github.com/spoacme/spoacme/store"
)

// reason is why a certificate is ordered.
type reason string

const (
	notDue   reason = ""
	firstOne reason = "first"   // there is none
	newNames reason = "names"   // a wanted name is not in it
	asked    reason = "asked"   // an operator's renew
	aged     reason = "renewal" // its time has come
	recorded reason = "resumed" // its order is under way
)

// facts is what the schedule looks at in a stored certificate.
type facts struct {
	ca, fingerprint     string
	domains             []string
	notBefore, notAfter time.Time
	renewAt, issuedAt   time.Time
	before              []time.Time
}

func factsOf(c *store.Certificate) *facts {
	return &facts{c.CA, c.Fingerprint, c.Domains, c.NotBefore, c.NotAfter, c.RenewAt, c.IssuedAt, c.Before}
}

// draw picks when a certificate is to be renewed: with a third of its lifetime left, half of it where it lives less than
// ten days, and up to a tenth of that earlier, so that what was ordered together is not renewed together. It is drawn
// once and stored.
func draw(notBefore, notAfter time.Time, jitter func(time.Duration) time.Duration) time.Time {
	life := notAfter.Sub(notBefore)
	left := life / 3
	if life < 10*24*time.Hour {
		left = life / 2
	}
	if left <= 0 {
		return notAfter
	}
	return notAfter.Add(-left - jitter(left/10+1)).UTC()
}

// due says whether a certificate is to be ordered now, and if not, when to look again. Time alone never makes a
// certificate due within a quarter of its lifetime after it was stored: a clock that is wrong does not make a loop.
func due(w *store.Wanted, c *facts, now time.Time) (why reason, at time.Time) {
	switch {
	case c == nil:
		return firstOne, now
	case !covers(c.domains, w.Spec.Domains):
		return newNames, now
	case c.issuedAt.Before(w.RenewAsked):
		return asked, now
	}
	at = c.renewAt
	if at.IsZero() || at.After(c.notAfter) {
		at = c.notAfter.Add(-c.notAfter.Sub(c.notBefore) / 3)
	}
	if since := now.Sub(c.issuedAt); since >= 0 {
		if fresh := c.issuedAt.Add(c.notAfter.Sub(c.notBefore) / 4); at.Before(fresh) && now.Before(fresh) {
			at = fresh
		}
	}
	if at.After(now) {
		return notDue, at
	}
	return aged, now
}
