package issuer

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

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
		gone := !d.Seen.IsZero() && time.Since(d.Seen) > absence
		if _, ok := d.Certificates[name]; ok && !gone {
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
