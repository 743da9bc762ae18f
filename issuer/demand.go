package issuer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// settled is how long nodes that disagree on a certificate's names must have stood still before a changed set is
// ordered: a node that flaps must not order with every change.
const settled = 10 * time.Minute

// wish is what one node's haproxy.cfg wants of one certificate.
type wish struct {
	node  string
	since time.Time
	spec  store.Spec
}

// merge makes of every node's demand what is wanted, and returns the records that change. Rules: what all nodes agree on is
// wanted at once, and so is a certificate that nobody asked for before; where they differ, the union of the names
// with the newest one's options is wanted once they have stood still; a union that no CA would issue is not, the newest
// valid wish is. Whom nobody asks for any more loses its sources and nothing else. again is when to merge again at the
// latest, zero for not at all.
func (x *index) merge(now time.Time) (changed []*store.Wanted, again time.Time) {
	wishes := x.wishes()
	for _, name := range slices.Sorted(maps.Keys(wishes)) {
		old := x.wanted[name]
		w, hold := merged(name, old, wishes[name], now)
		if !hold.IsZero() && (again.IsZero() || hold.Before(again)) {
			again = hold
		}
		if w != nil {
			changed = append(changed, w)
		}
	}
	if x.partial {
		return changed, again
	}
	for _, name := range slices.Sorted(maps.Keys(x.wanted)) {
		if w := x.wanted[name]; len(w.Sources) > 0 && len(wishes[name]) == 0 {
			dropped := *w
			dropped.Sources = nil
			changed = append(changed, &dropped)
		}
	}
	return changed, again
}

// wishes sorts the demand by certificate, newest first.
func (x *index) wishes() map[string][]wish {
	all := map[string][]wish{}
	for _, node := range slices.Sorted(maps.Keys(x.demands)) {
		d := x.demands[node]
		for name, spec := range d.Certificates {
			all[name] = append(all[name], wish{node, d.Since, spec})
		}
	}
	for _, w := range all {
		slices.SortStableFunc(w, func(a, b wish) int { return b.since.Compare(a.since) })
	}
	return all
}

// merged returns the new record of one certificate, nil when it stays as it is; hold is when a change that has to
// wait is due.
func merged(name string, old *store.Wanted, wishes []wish, now time.Time) (w *store.Wanted, hold time.Time) {
	n := store.Wanted{Name: name, Generation: 1}
	if old != nil {
		n = *old
	}
	n.Sources = nil
	for _, wish := range wishes {
		n.Sources = append(n.Sources, wish.node)
	}
	slices.Sort(n.Sources)
	spec, agreed := union(wishes)
	switch {
	case old == nil:
		n.Spec = spec
	case sameSpec(spec, old.Spec):
	case agreed || len(old.Sources) == 0 || now.Sub(wishes[0].since) >= settled:
		n.Spec = spec
		n.Generation++
	default:
		hold = wishes[0].since.Add(settled)
	}
	if old != nil && sameSpec(n.Spec, old.Spec) && slices.Equal(n.Sources, old.Sources) {
		return nil, hold
	}
	return &n, hold
}

// union is what the wishes come to, and whether they are one.
func union(wishes []wish) (spec store.Spec, agreed bool) {
	spec, agreed = wishes[0].spec, true
	all := spec
	all.Domains = slices.Clone(spec.Domains)
	for _, w := range wishes[1:] {
		agreed = agreed && sameSpec(w.spec, spec)
		for _, d := range w.spec.Domains {
			if !slices.Contains(all.Domains, d) {
				all.Domains = append(all.Domains, d)
			}
		}
	}
	if all.Validate() == nil {
		return all, agreed
	}
	return spec, agreed
}

// sameSpec compares what a certificate depends on; the order of the names does not count.
func sameSpec(a, b store.Spec) bool {
	return covers(a.Domains, b.Domains) && covers(b.Domains, a.Domains) && a.Challenge == b.Challenge && a.DNS == b.DNS &&
		a.Profile == b.Profile && a.KeyType == b.KeyType && a.CA == b.CA
}

// carryOut returns what a request comes to: the operations, or why it is refused, in words for the operator.
func (x *index) carryOut(r *store.Request, now time.Time) (ops []store.Op, refused error) {
	switch r.Op {
	case store.RequestIssue:
		return x.issue(r)
	case store.RequestRenew:
		return x.renew(r, now)
	case store.RequestRemove:
		return x.remove(r)
	}
	return nil, fmt.Errorf("request %q: not understood by this version; update the leader", r.Op)
}

func (x *index) issue(r *store.Request) ([]store.Op, error) {
	old := x.wanted[r.Certificate]
	if old == nil {
		w := &store.Wanted{Name: r.Certificate, Spec: r.Spec, Generation: 1, IssuedByHand: true}
		return []store.Op{store.Put(w)}, nil
	}
	w := *old
	w.IssuedByHand = true
	if !sameSpec(r.Spec, old.Spec) {
		if nodes := x.askedBy(r.Certificate); len(nodes) > 0 {
			return nil, fmt.Errorf("issue %s: haproxy.cfg of %s asks for it with other words; change SPOACME_CERT_%[1]s there",
				r.Certificate, nodes)
		}
		w.Spec = r.Spec
		w.Generation++
	}
	return append(x.unlock(r.Certificate), store.Put(&w)), nil
}

func (x *index) renew(r *store.Request, now time.Time) ([]store.Op, error) {
	old := x.wanted[r.Certificate]
	switch {
	case old == nil:
		return nil, fmt.Errorf("renew %s: no certificate of this name is wanted; see status for those that are", r.Certificate)
	case !active(old):
		return nil, fmt.Errorf("renew %s: nobody asks for it any more; add it to SPOACME_CERTS, or issue it", r.Certificate)
	}
	w := *old
	w.RenewAsked = now.UTC()
	return append(x.unlock(r.Certificate), store.Put(&w)), nil
}

func (x *index) remove(r *store.Request) ([]store.Op, error) {
	if nodes := x.askedBy(r.Certificate); len(nodes) > 0 {
		return nil, fmt.Errorf("remove %s: haproxy.cfg of %s asks for it; take it out of SPOACME_CERTS there first", r.Certificate, nodes)
	}
	if x.wanted[r.Certificate] == nil && x.issued[r.Certificate] == nil {
		return nil, fmt.Errorf("remove %s: there is no certificate of this name", r.Certificate)
	}
	var ops []store.Op
	for _, kind := range []store.Kind{store.KindWanted, store.KindIssued, store.KindOrder, store.KindAttempt, store.KindChallenges} {
		ops = append(ops, store.Delete(store.Key{Kind: kind, Name: r.Certificate}))
	}
	return ops, nil
}

// askedBy names the nodes whose haproxy.cfg asks for a certificate; empty when none does.
func (x *index) askedBy(name string) string {
	var nodes []string
	for node, d := range x.demands {
		if _, ok := d.Certificates[name]; ok {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return strings.Join(nodes, ", ")
}

// unlock lets a certificate be tried at once that is waiting after failures, unless the CA demanded the wait.
func (x *index) unlock(name string) []store.Op {
	a := x.attempts[name]
	if a == nil || a.Limited {
		return nil
	}
	return []store.Op{store.Delete(a.Key())}
}
