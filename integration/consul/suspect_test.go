package consul_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

// A node that missed a barrier whose order is over by the time it has caught up is waited for by the next one: also when it never
// heard of that order.
func TestBarrierWaitsForFormerSuspects(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	p := startProxy(t, f.c.Servers[0].URL())
	leader, slow, cut := f.start(f.config("a", 0)), f.start(f.config("b", 0)), f.start(f.through(p, "c"))
	l := lead(t, leader)
	eventually(t, 10*time.Second, "all are live", func() bool { return f.node(t, leader.Store, "b").Live && f.node(t, leader.Store, "c").Live })
	late := func(generation uint64, want ...string) {
		t.Helper()
		commit(t, leader, l, store.Put(challenges("shop", generation)))
		missing, err := leader.Barrier(within(t, time.Second), generation)
		if err != nil || !slices.Equal(missing, want) {
			t.Fatalf("generation %d: missing %q, %v; want %q", generation, missing, err, want)
		}
	}
	late(10)

	hold := make(chan struct{})
	slow.setSlow(hold)
	p.set(func(r *http.Request) fate {
		if strings.Contains(r.URL.Path, "/challenges") {
			return lose
		}
		return pass
	})
	eventually(t, 5*time.Second, "the node knows that it is cut off", func() bool {
		p.CloseClientConnections()
		return !cut.TableInStep() && slow.TableInStep()
	})
	late(20, "b", "c")
	commit(t, leader, l, store.Delete(challenges("shop", 0).Key()))
	if !f.node(t, leader.Store, "b").Suspect || !f.node(t, leader.Store, "c").Suspect {
		t.Error("who missed a barrier is no suspect")
	}

	slow.setSlow(nil)
	close(hold)
	p.set(nil)
	p.CloseClientConnections()
	eventually(t, 20*time.Second, "they are suspect no longer", func() bool {
		return !f.node(t, leader.Store, "b").Suspect && !f.node(t, leader.Store, "c").Suspect
	})
	late(30)
	if slow.token("shop") != 30 || cut.token("shop") != 30 {
		t.Error("the barrier did not wait for them")
	}
	if !cut.TableInStep() {
		t.Error("the node does not know that it is no longer cut off")
	}
}
