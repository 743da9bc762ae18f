package issuer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

const (
	// settled is how long nodes that disagree on a certificate's names must have stood still before a changed set is
	// ordered: a node that flaps must not order with every change.
	settled = 10 * time.Minute
	// absence is how long the demand of a node that is gone counts: seven days, and the hours between two of its signs
	// of life.
	absence = 7*24*time.Hour + 6*time.Hour
	// young is how long names that nobody asks for any more stay beside new ones: the CA has just seen them, so they cost
	// nothing, and who changes his mind to and fro orders once.
	young = 24 * time.Hour
)

// presence is which nodes are live. A nil presence is that of a node on its own.
type presence struct {
	known bool
	live  map[string]bool
}

// counts reports whether a node's demand does, and if it will not for ever, until when.
func (p *presence) counts(d *store.Demand, now time.Time) (until time.Time, ok bool) {
	if p == nil || !p.known || p.live[d.Node] || d.Seen.IsZero() {
		return time.Time{}, true
	}
	until = d.Seen.Add(absence)
	return until, now.Before(until)
}

// agrees reports whether a node has a say in whether all agree: those that are live do.
func (p *presence) agrees(node string) bool { return p == nil || !p.known || p.live[node] }

// wish is what one node's haproxy.cfg wants of one certificate.
type wish struct {
	node  string
	since time.Time
	spec  store.Spec
	live  bool
}

// sight is when this process learned of a node's present demand.
type sight struct {
	since   time.Time // of the demand
	at      time.Time
	changed bool // it was another one before
}

// note remembers when a demand came. Clocks of nodes may be wrong; ours tells at least how long we know it.
func (x *index) note(d *store.Demand, now time.Time) {
	if old, known := x.seen[d.Node]; !known || !old.since.Equal(d.Since) {
		x.seen[d.Node] = sight{d.Since, now, known}
	}
}

// stoodSince is since when a demand has been as it is.
func (x *index) stoodSince(d *store.Demand) time.Time {
	s, known := x.seen[d.Node]
	if known && (s.changed || d.Since.After(s.at)) {
		return s.at
	}
	return d.Since
}

// merge makes of every node's demand what is wanted, and returns the records that change. Rules: what all live nodes agree on
// is wanted at once, and so is a certificate that nobody asked for before; where they differ, the union of the names
// with the newest one's options is wanted once they have stood still; a union that no CA would issue is not, the newest
// valid wish is. The demand of a node that is gone counts for seven days more. Whom nobody asks for any more loses its
// sources and nothing else. again is when to merge again at the latest, zero for not at all.
func (x *index) merge(now time.Time, nodes *presence) (changed []*store.Wanted, again time.Time) {
	wishes, again := x.wishes(now, nodes)
	for _, name := range slices.Sorted(maps.Keys(wishes)) {
		old := x.wanted[name]
		var names []string
		if nodes != nil {
			names = x.recent(name, now)
		}
		w, hold := merged(name, old, x.issued[name], names, wishes[name], now)
		again = sooner(again, hold)
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
			dropped.Sources, dropped.Note = nil, ""
			changed = append(changed, &dropped)
		}
	}
	return changed, again
}

// wishes sorts the demand by certificate, newest first, and says when the first of it counts no longer.
func (x *index) wishes(now time.Time, nodes *presence) (all map[string][]wish, again time.Time) {
	all = map[string][]wish{}
	for _, node := range slices.Sorted(maps.Keys(x.demands)) {
		d := x.demands[node]
		until, counts := nodes.counts(d, now)
		if !counts {
			continue
		}
		again = sooner(again, until)
		since, live := x.stoodSince(d), nodes.agrees(node)
		if nodes != nil && !live {
			again = sooner(again, now.Add(lookAgain)) // it may come back
		}
		for name, spec := range d.Certificates {
			all[name] = append(all[name], wish{node, since, spec, live})
		}
	}
	for _, w := range all {
		slices.SortStableFunc(w, func(a, b wish) int { return b.since.Compare(a.since) })
	}
	return all, again
}

// recent is the names of a certificate that is young and did not fail since.
func (x *index) recent(name string, now time.Time) []string {
	have, a := x.issued[name], x.attempts[name]
	if have == nil || now.Sub(have.issuedAt) > young || a != nil && a.Error != "" {
		return nil
	}
	return have.domains
}

// merged returns the new record of one certificate, nil when it stays as it is; hold is when a change that has to
// wait is due. Names of recent stay in it when others come.
func merged(name string, old *store.Wanted, have *facts, recent []string, wishes []wish, now time.Time) (w *store.Wanted, hold time.Time) {
	n := store.Wanted{Name: name, Generation: 1}
	if old != nil {
		n = *old
	}
	n.Sources = nil
	for _, wish := range wishes {
		n.Sources = append(n.Sources, wish.node)
	}
	slices.Sort(n.Sources)
	var spec store.Spec
	var agreed bool
	spec, agreed, n.Note = union(wishes)
	stood := old == nil || len(old.Sources) == 0 || now.Sub(wishes[0].since) >= settled
	if agreed && !stood {
		if sure := certain(spec, wishes, old.Spec); !sameSpec(sure, spec) {
			spec, hold = sure, wishes[0].since.Add(settled)
		}
	}
	if recent != nil && !covers(recent, spec.Domains) {
		spec = with(spec, recent)
	}
	switch {
	case old == nil:
		n.Spec = spec
	case sameSpec(spec, old.Spec):
	case agreed || stood:
		n.Spec = spec
		if have == nil || !covers(have.domains, spec.Domains) || !sameOptions(spec, old.Spec) {
			n.Generation++
		}
	default:
		hold = wishes[0].since.Add(settled)
	}
	if !hold.IsZero() {
		n.Note = strings.Trim(n.Note+"; the nodes ask for different names: a change is ordered when they agree or have stood still for "+
			"10 minutes", "; ")
	}
	if old != nil && sameSpec(n.Spec, old.Spec) && slices.Equal(n.Sources, old.Sources) && n.Note == old.Note {
		return nil, hold
	}
	return &n, hold
}

// certain leaves out of what the live nodes agree on the names that only one asks for that is gone: it may be back in a
// moment, and want something else. What it asked for before stays.
func certain(spec store.Spec, wishes []wish, before store.Spec) store.Spec {
	sure := spec
	sure.Domains = slices.DeleteFunc(slices.Clone(spec.Domains), func(d string) bool {
		return !slices.Contains(before.Domains, d) && !slices.ContainsFunc(living(wishes), func(w wish) bool { return slices.Contains(w.spec.Domains, d) })
	})
	if len(sure.Domains) == 0 {
		return before
	}
	return sure
}

// living returns the wishes of nodes that are live; with none live, all.
func living(wishes []wish) []wish {
	live := slices.DeleteFunc(slices.Clone(wishes), func(w wish) bool { return !w.live })
	if len(live) == 0 {
		return wishes
	}
	return live
}

// union is what the wishes come to, whether those of live nodes are one, and what is to be said of the others.
func union(wishes []wish) (spec store.Spec, agreed bool, note string) {
	newest := wishes[0]
	spec = newest.spec
	all := with(spec, nil)
	for _, w := range wishes[1:] {
		if note == "" && !sameOptions(w.spec, spec) {
			note = fmt.Sprintf("%s and %s ask for different options: those of %[1]s, which are newer, are used", newest.node, w.node)
		}
		for _, d := range w.spec.Domains {
			if !slices.Contains(all.Domains, d) {
				all.Domains = append(all.Domains, d)
			}
		}
	}
	agreed = agree(wishes)
	if all.Validate() == nil {
		return all, agreed, note
	}
	return spec, agreed, fmt.Sprintf("what the nodes ask for does not go into one certificate: that of %s, which is newest, is used", newest.node)
}

// agree reports whether the live ones among the wishes are one; with none live, whether all are.
func agree(wishes []wish) bool {
	live := living(wishes)
	return !slices.ContainsFunc(live, func(w wish) bool { return !sameSpec(w.spec, live[0].spec) })
}

// with returns spec with further names, if that is valid.
func with(spec store.Spec, more []string) store.Spec {
	all := spec
	all.Domains = slices.Clone(spec.Domains)
	for _, d := range more {
		if !slices.Contains(all.Domains, d) {
			all.Domains = append(all.Domains, d)
		}
	}
	if len(more) > 0 && all.Validate() != nil {
		return spec
	}
	return all
}

// sameSpec compares what a certificate depends on; the order of the names does not count.
func sameSpec(a, b store.Spec) bool {
	return covers(a.Domains, b.Domains) && covers(b.Domains, a.Domains) && sameOptions(a, b)
}

func sameOptions(a, b store.Spec) bool {
	return a.Challenge == b.Challenge && a.DNS == b.DNS && a.Profile == b.Profile && a.KeyType == b.KeyType && a.CA == b.CA
}
