package fleet

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestPacketsDropped loses all packets between the leader and Consul, in the middle of an order: nobody is told, nothing is
// refused. Its lease ends, another one goes on with the order, the one that is cut off issues nothing, serving goes on
// everywhere, and all is well again when packets arrive.
func TestPacketsDropped(t *testing.T) {
	t.Parallel()
	if !fixture.OwnNetwork(t) {
		return
	}
	f := start(t, 3, fixture.ConsulOptions{Servers: 3}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 3)

	node, session := f.leader(t, 10*time.Second, "")
	var heal func() error
	var begin time.Time
	cut := f.atFinalize(func() {
		var err error
		if heal, err = fixture.Drop(f.consul.Servers[node].HTTP.Number); err != nil {
			t.Error(err)
		}
		begin = time.Now()
	})
	f.ask(t, f.other(node), "shop")
	closed(t, cut, "finalize")
	f.asked(node) // it can't have the tokens of what is ordered from now on
	f.lastOf(node)
	f.leader(t, 40*time.Second, session)
	t.Logf("another leads %v after the first packet was lost", time.Since(begin).Round(time.Millisecond))
	f.renewedWithout(t, 30*time.Second, node, 2)
	f.unready(t, 20*time.Second, node, "FAIL store", "Consul", "does not answer")

	t.Log("while one is cut off, a certificate is renewed")
	f.ask(t, f.other(node), "shop")
	f.renewedWithout(t, 60*time.Second, node, 3)
	if out, err := f.sidecar[node].Run(t.Context(), "renew", "--no-wait", "shop"); err == nil {
		t.Errorf("the node that is cut off accepted a renewal: %s", out)
	}
	if n := strings.Count(f.sidecar[node].Log(), "Consul is out of reach"); n != 1 {
		t.Errorf("it said %d times that Consul is out of reach", n)
	}

	must(t, heal())
	f.asked(-1)
	begin = time.Now()
	f.renewed(t, 90*time.Second, shop, 3)
	t.Logf("the node that was cut off serves the newest certificate %v after packets arrive again", time.Since(begin).Round(time.Millisecond))
	f.ready(t, 90*time.Second, 3)
	t.Logf("all are ready %v after packets arrive again", time.Since(begin).Round(time.Millisecond))
	f.ask(t, node, "shop")
	f.renewed(t, 60*time.Second, shop, 4)
}

// lastOf makes the test itself ask one of Consul's servers last: it does not answer.
func (f *fleet) lastOf(node int) {
	servers := slices.Clone(f.consul.Servers)
	f.consul.Servers = append(slices.Delete(servers, node, node+1), f.consul.Servers[node])
}
