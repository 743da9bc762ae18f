package issuer

import (
	"time"

	"github.com/spoacme/spoacme/store"
)

// pace is how long a certificate waits after failures of one class: first, then three times longer with
// every further one, up to most. Five failed validations an hour is what Let's Encrypt allows.
type pace struct{ first, most time.Duration }

var paces = map[class]pace{
	classDomain:      {time.Minute, 24 * time.Hour},
	classUnavailable: {time.Minute, time.Hour},
	classAccount:     {5 * time.Minute, time.Hour},
	classRefused:     {3 * time.Hour, 24 * time.Hour},
	classLimited:     {time.Hour, 24 * time.Hour},
	classStore:       {time.Minute, time.Hour},
	classNobody:      {30 * time.Second, 30 * time.Second}, // it costs the CA two reads of the order
}

// wait is the pause after the n-th failure in a row, up to a tenth longer so that failures of many spread.
func (i *Issuer) wait(c class, n int) time.Duration {
	p := paces[c]
	d := p.first
	for ; n > 1 && d < p.most; n-- {
		d *= 3
	}
	d = min(d, p.most)
	return d + i.jitter(d/10)
}

// begun is the attempt as it is stored before the CA is called: one more failure until it proves otherwise. One that goes on
// where another was cut short is no second failure.
func (i *Issuer) begun(name, ca string, prev *store.Attempt, now time.Time) *store.Attempt {
	a := &store.Attempt{Name: name, CA: ca, Failures: 1, Tried: now}
	switch {
	case prev == nil:
	case prev.Error == "":
		a.Failures, a.CutShort = max(prev.Failures, 1), prev.CutShort+1
	default:
		a.Failures = prev.Failures + 1
	}
	a.Next = now.Add(i.wait(classUnavailable, a.Failures+a.CutShort))
	return keepLimit(a, prev)
}

// afterwards is the attempt that a has become through f. That an order which was gone on with is over is no other failure
// than the one that it was left with; and a try that did not get as far as the CA makes no pause after the next one longer.
func (i *Issuer) afterwards(a *store.Attempt, prev *store.Attempt, f *failure, resumed bool, now time.Time) *store.Attempt {
	b := *a
	if known := prev != nil && prev.Error != ""; known && (resumed && f.gone || f.class == classNobody) {
		b.Failures = prev.Failures
	}
	b.Error, b.Domain, b.CutShort = f.Error(), f.domain, 0
	b.Next = now.Add(i.wait(f.class, b.Failures))
	b.Limited = f.class == classLimited
	if b.Next.Before(f.until) {
		b.Next = f.until.Add(i.jitter(time.Minute))
	}
	return keepLimit(&b, prev)
}

// keepLimit carries the CA's Retry-After of an earlier attempt over: another CA's answer does not shorten it.
func keepLimit(a, prev *store.Attempt) *store.Attempt {
	if prev != nil && prev.Limited && prev.Next.After(a.Next) {
		a.Next, a.Limited = prev.Next, true
	}
	return a
}

// mayCutShort is how often in a row an attempt that ended without a verdict (the process died, the lease
// ended) is taken up again at once; after that it waits as a failed one does.
const mayCutShort = 3

// ready says when the certificate may be tried again; the zero time means now.
func ready(a *store.Attempt, now time.Time) time.Time {
	switch {
	case a == nil || !a.Next.After(now):
		return time.Time{}
	case a.Tried.After(now.Add(5 * time.Minute)): // the clock was set back since
		return time.Time{}
	case a.Error == "" && !a.Limited && a.CutShort < mayCutShort:
		return time.Time{}
	}
	return a.Next
}
