package fleet

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestConsulLost takes away Consul's leader, its quorum, and all of it. Serving never stops, nothing is issued without the
// lock, the nodes say so, and all is well again without help.
func TestConsulLost(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{Servers: 3}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 3)

	t.Log("Consul's leader dies, and with it all that one node knows: the authority is not to ask there")
	lost := f.consulLeader(t)
	f.asked(lost)
	f.consul.Servers[lost].Kill()
	f.unready(t, 20*time.Second, lost, "store", "Consul")
	begin := time.Now()
	f.leads(t, 60*time.Second, lost)
	f.ask(t, f.other(lost), "shop")
	f.renewedWithout(t, 60*time.Second, lost, 2)
	t.Logf("Consul's leader died: renewed after %v", time.Since(begin).Round(time.Millisecond))
	must(t, f.consul.Servers[lost].Start())
	f.healed(t, 2)
	f.asked(-1)

	t.Log("two of three servers stand still")
	must(t, errors.Join(f.consul.Servers[0].Freeze(), f.consul.Servers[1].Freeze()))
	f.silent(t, "store") // what is asked for now may come true later, so nothing is
	must(t, errors.Join(f.consul.Servers[0].Thaw(), f.consul.Servers[1].Thaw()))
	f.healed(t, 2)

	t.Log("all of Consul is down, and a node starts")
	for _, s := range f.consul.Servers {
		s.Kill()
	}
	f.sidecar[0].Kill9()
	must(t, f.haproxy[0].Reload(t.Context()))
	must(t, f.sidecar[0].Restart())
	f.silent(t, "store", "Consul")
	if out, err := f.sidecar[2].Run(t.Context(), "renew", "--no-wait", "shop"); err == nil {
		t.Errorf("a renewal was accepted without Consul: %s", out)
	}
	for _, s := range f.consul.Servers {
		must(t, s.Start())
	}
	f.healed(t, 2)
	f.ask(t, 0, "shop")
	f.renewed(t, 30*time.Second, shop, 3)
}

// consulLeader returns the index of Consul's own leader.
func (f *fleet) consulLeader(t *testing.T) int {
	t.Helper()
	leader := f.consul.Leader(t.Context())
	for i, s := range f.consul.Servers {
		if s == leader {
			return i
		}
	}
	t.Fatal("Consul has no leader")
	return 0
}

// leads waits until a node leads that is not the given one.
func (f *fleet) leads(t *testing.T, limit time.Duration, not int) {
	t.Helper()
	await(t, limit, "a leader", func() error {
		node, _, err := f.lock(t)
		if err == nil && node == not {
			err = errors.New("the node without Consul leads")
		}
		return err
	})
}

// renewedWithout is renewed where one node can't hear of it.
func (f *fleet) renewedWithout(t *testing.T, limit time.Duration, node, certificates int) {
	t.Helper()
	await(t, limit, shop, func() error {
		if len(f.ca.IssuedFor(f.pebble, shop)) < certificates {
			return errors.New("not issued")
		}
		return nil
	})
	f.renewedBut(t, limit, node)
	f.counted(t, shop, certificates)
}

// silent demands that all nodes say that their store is out of reach, and that nothing is ordered.
func (f *fleet) silent(t *testing.T, words ...string) {
	t.Helper()
	orders := len(f.pebble.Orders())
	for i := range f.sidecar {
		f.unready(t, 30*time.Second, i, words...)
	}
	hold(t, 12*time.Second, "for longer than a lease lasts", func() error {
		if n := len(f.pebble.Orders()); n != orders {
			return fmt.Errorf("%d orders without Consul", n-orders)
		}
		return nil
	})
}

// healed waits until all is well without help, and demands that nothing was issued for it.
func (f *fleet) healed(t *testing.T, certificates int) {
	t.Helper()
	begin := time.Now()
	f.ready(t, 90*time.Second, 3)
	f.leader(t, 60*time.Second, "")
	t.Logf("healed after %v", time.Since(begin).Round(time.Millisecond))
	f.renewed(t, 20*time.Second, shop, certificates)
}
