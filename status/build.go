package status

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// maxError is how much of an error is shown.
const maxError = 500

// facts is all that is known of one certificate.
type facts struct {
	foreign bool
	wanted  *store.Wanted
	issued  *store.Certificate
	order   *store.Order
	attempt *store.Attempt
	served  *Served
}

// Build makes the view.
func Build(in Input) View {
	v := View{Time: in.Now, Node: in.Node, Version: in.Version, Role: in.Role, HAProxy: in.HAProxy, Loading: in.Loading, Conditions: []Condition{}}
	for _, c := range in.Conditions {
		c.Message = clean(c.Message, maxError)
		v.Conditions = append(v.Conditions, c)
	}
	all := gather(in)
	v.Certificates = make([]CertificateView, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		v.Certificates = append(v.Certificates, certificate(name, all[name], in.Now, in.HAProxy.Reachable))
	}
	v.Fleet = in.Fleet
	countNodes(v)
	return v
}

// countNodes says on how many nodes of the fleet each certificate is served. What this node serves it knows
// best itself; of the others it knows what they say differs.
func countNodes(v View) {
	all := 0
	differs := map[string]int{}
	for _, n := range v.Fleet {
		if !n.serves() || n.Name == v.Node {
			continue
		}
		all++
		for _, d := range n.Differs {
			differs[d.Certificate]++
		}
	}
	for i := range v.Certificates {
		c := &v.Certificates[i]
		c.Nodes.All += all
		if c.Stored != nil {
			c.Nodes.Serving += all - differs[c.Name]
		}
	}
}

func gather(in Input) map[string]*facts {
	all := make(map[string]*facts, len(in.Wanted))
	of := func(name string) *facts {
		f, ok := all[name]
		if !ok {
			f = new(facts)
			all[name] = f
		}
		return f
	}
	for _, w := range in.Wanted {
		if len(w.Sources) > 0 || w.IssuedByHand { // otherwise what was dropped from every haproxy.cfg
			of(w.Name).wanted = w
		}
	}
	for _, c := range in.Issued {
		of(c.Name).issued = c
	}
	for _, c := range in.Foreign {
		if f := of(c.Name); f.issued == nil {
			f.issued, f.foreign = c, true
		}
	}
	// Orders and attempts alone make no certificate: they may be left from one that was removed.
	for _, o := range in.Orders {
		if f, ok := all[o.Name]; ok {
			f.order = o
		}
	}
	for _, a := range in.Attempts {
		if f, ok := all[a.Name]; ok {
			f.attempt = a
		}
	}
	for name, f := range all {
		if s, ok := in.Served[name]; ok {
			s.Error = clean(s.Error, maxError)
			f.served = &s
		}
	}
	return all
}

func certificate(name string, f *facts, now time.Time, reachable bool) CertificateView {
	c := CertificateView{Name: name, Served: f.served, Nodes: Nodes{All: 1}}
	if f.wanted != nil {
		c.Domains, c.Note = f.wanted.Spec.Domains, clean(f.wanted.Note, maxError)
	}
	if f.issued != nil {
		if f.wanted == nil {
			c.Domains = f.issued.Domains
		}
		c.Stored = &Stored{f.issued.Fingerprint, f.issued.Serial, f.issued.Issuer, f.issued.NotBefore, f.issued.NotAfter}
		c.Percent = percent(now, f.issued.NotBefore, f.issued.NotAfter)
		c.RenewAt = f.issued.RenewAt
		if f.served != nil && f.served.Fingerprint == f.issued.Fingerprint {
			c.Nodes.Serving = 1
		}
	}
	if a := f.attempt; a != nil && f.lastTryCounts() {
		c.Failures, c.NextAttempt = a.Failures, a.Next
	}
	c.State = f.state(now, reachable && c.Nodes.Serving == 0)
	c.Error = clean(f.trouble(c.State, c.Stored), maxError)
	return c
}

// lastTryCounts reports whether the attempt is newer than the certificate.
func (f *facts) lastTryCounts() bool {
	return f.issued == nil || f.attempt.Tried.After(f.issued.IssuedAt)
}

func (f *facts) state(now time.Time, notServed bool) State {
	switch {
	case f.foreign && !now.Before(f.issued.NotAfter):
		return Expired
	case f.foreign && notServed:
		return Drift
	case f.foreign:
		return Foreign
	case f.wanted == nil:
		return Unwanted
	case f.issued == nil:
		return Missing
	case !now.Before(f.issued.NotAfter):
		return Expired
	case notServed:
		return Drift
	case f.failed():
		return Failing
	case f.due(now):
		return Renewing
	}
	return OK
}

// failed reports whether the last try ended in an error. A try under way has none yet.
func (f *facts) failed() bool {
	return f.attempt != nil && f.attempt.Error != "" && f.lastTryCounts()
}

func (f *facts) due(now time.Time) bool {
	return f.order != nil || f.wanted.Generation > f.issued.Generation || f.wanted.RenewAsked.After(f.issued.IssuedAt) ||
		!f.issued.RenewAt.IsZero() && !now.Before(f.issued.RenewAt)
}

// trouble says what is wrong in a state and what to do.
func (f *facts) trouble(s State, stored *Stored) string {
	switch s {
	case Drift:
		switch {
		case f.served != nil && f.served.Error != "":
			return f.served.Error
		case f.served == nil || f.served.Fingerprint == "":
			return "HAProxy does not serve it; see the sidecar's log, or run `spoacme check`"
		}
		return "HAProxy serves another certificate (SHA-1 " + f.served.Fingerprint + ") than the stored one (" + stored.Fingerprint +
			"); see the sidecar's log, or run `spoacme check`"
	case Missing, Expired, Failing:
		if !f.failed() {
			return ""
		}
		if d := f.attempt.Domain; d != "" && !strings.Contains(f.attempt.Error, d) {
			return d + ": " + f.attempt.Error
		}
		return f.attempt.Error
	}
	if f.served != nil {
		return f.served.Error // it is served, but something else is wrong: not on disk, for one
	}
	return ""
}

// percent is how much of a lifetime is left, rounded; never 0 or less before the end.
func percent(now, from, to time.Time) int {
	total, left := to.Sub(from), to.Sub(now)
	switch {
	case left <= 0 || total <= 0:
		return 0
	case left >= total:
		return 100
	}
	return max(1, int(math.Round(100*left.Seconds()/total.Seconds())))
}
