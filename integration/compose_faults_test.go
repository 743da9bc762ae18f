//go:build docker

package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// issuesForEachNode has a certificate made for each node's own name. The authority asks only that node then, so that a
// renewal works while another one is dead or cut off.
func (c *composition) issuesForEachNode(t *testing.T) {
	for _, n := range c.all() {
		c.spoacme(t, n.number, "issue", n.name(), n.domain())
		c.awaitSame(t, n.domain(), "", c.all())
	}
	if orders := c.orders(t); orders != 4 {
		t.Errorf("Pebble had %d orders for four certificates", orders)
	}
}

// survivesCrash kills the leading sidecar's process; Docker starts it again, and the fleet renews.
func (c *composition) survivesCrash(t *testing.T) {
	leader := c.leader(t, c.all())
	began := time.Now()
	c.crash(t, "spoacme", leader.number)
	c.awaitFleet(t, c.all())
	t.Logf("%s, which led, crashed: it is back after %v", leader.name(), since(began))
	c.renewsShop(t)
	t.Logf("renewed after %v, %s leads", since(began), c.leader(t, c.all()).name())
}

// survivesLeader kills the leading sidecar for good: another takes over and renews; the dead one's HAProxy serves on, and
// has everything when the sidecar is back.
func (c *composition) survivesLeader(t *testing.T) {
	dead := c.leader(t, c.all())
	rest := c.but(dead)
	box := c.container(t, "spoacme", dead.number)
	c.docker(t, "kill", "--signal", "KILL", box)
	began := time.Now()
	leader := c.leader(t, rest)
	t.Logf("%s, which led, is killed: %s leads after %v", dead.name(), leader.name(), since(began))

	old := c.awaitSame(t, leader.domain(), "", c.all())
	c.spoacme(t, leader.number, "renew", leader.name())
	renewed := c.awaitSame(t, leader.domain(), old, rest)
	if served := c.awaitSame(t, leader.domain(), "", []node{dead}); served != old {
		t.Errorf("%s serves %s with its sidecar dead, served %s", dead.name(), served, old)
	}

	c.docker(t, "start", box)
	began = time.Now()
	if served := c.awaitSame(t, leader.domain(), old, c.all()); served != renewed {
		t.Errorf("serial %s is served by all, %s was before", served, renewed)
	}
	t.Logf("%s is back and serves the renewed certificate after %v", dead.name(), since(began))
	c.awaitFleet(t, c.all())
	c.renewsShop(t)
}

// survivesCut takes the network to Consul away from a node and renews meanwhile: the others go on, and the node follows
// once the network is back.
func (c *composition) survivesCut(t *testing.T) {
	leader := c.leader(t, c.all())
	cut := c.but(leader)[0]
	rest := c.but(cut)
	box, store := c.container(t, "node", cut.number), c.project+"_store"
	old := c.awaitSame(t, leader.domain(), "", c.all())

	c.docker(t, "network", "disconnect", store, box)
	began := time.Now()
	c.spoacme(t, leader.number, "renew", leader.name())
	renewed := c.awaitSame(t, leader.domain(), old, rest)
	t.Logf("%s is cut off from Consul: the others renewed after %v", cut.name(), since(began))
	if served := c.awaitSame(t, leader.domain(), "", []node{cut}); served != old {
		t.Errorf("%s serves %s while it is cut off, served %s", cut.name(), served, old)
	}
	err := fixture.Await(t.Context(), time.Minute, func() error {
		if v, err := c.view(t.Context(), cut); err != nil || v.Ready() {
			return fmt.Errorf("%s says that it is ready, without Consul (%v)", cut.name(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	c.docker(t, "network", "connect", store, box)
	began = time.Now()
	if served := c.awaitSame(t, leader.domain(), old, c.all()); served != renewed {
		t.Errorf("serial %s is served by all, %s was before", served, renewed)
	}
	t.Logf("%s is connected again: it serves the renewed certificate after %v", cut.name(), since(began))
	c.awaitFleet(t, c.all())
	t.Logf("the fleet is whole after %v", since(began))
	c.renewsShop(t)
}

// survivesConsul kills the leading Consul server: another one leads, the sidecars at the two that are left renew, and the
// third joins again.
func (c *composition) survivesConsul(t *testing.T) {
	dead := c.consulLeader(t, c.all())
	rest := c.but(dead)
	box := c.container(t, "consul", dead.number)
	c.docker(t, "kill", "--signal", "KILL", box)
	began := time.Now()
	next := c.consulLeader(t, rest)
	t.Logf("consul%d, which led, is killed: consul%d leads after %v", dead.number, next.number, since(began))
	leader := c.leader(t, rest)
	t.Logf("%s leads the fleet after %v", leader.name(), since(began))
	old := c.awaitSame(t, leader.domain(), "", c.all())
	c.spoacme(t, leader.number, "renew", leader.name())
	renewed := c.awaitSame(t, leader.domain(), old, rest)
	t.Logf("renewed after %v", since(began))

	c.docker(t, "start", box)
	began = time.Now()
	if served := c.awaitSame(t, leader.domain(), old, c.all()); served != renewed {
		t.Errorf("serial %s is served by all, %s was before", served, renewed)
	}
	c.awaitFleet(t, c.all())
	t.Logf("consul%d is back: the fleet is whole after %v", dead.number, since(began))
	c.renewsShop(t)
}

// renewsShop renews the certificate of the name that leads to all three, so that the authority asks any of them.
func (c *composition) renewsShop(t *testing.T) {
	t.Helper()
	old := c.awaitSame(t, "shop.example.com", "", c.all())
	c.spoacme(t, 1, "renew", "shop")
	c.awaitSame(t, "shop.example.com", old, c.all())
}

// isWhole demands after all faults: everything healthy, nothing started again but what was killed, no key in a log.
func (c *composition) isWhole(t *testing.T) {
	c.awaitHealthy(t)
	for _, box := range c.containers(t) {
		once := box.service() == "keys" || box.service() == "folders"
		if box.State.Running == once || once && box.State.ExitCode != 0 {
			t.Errorf("%s: running %v, exit code %d", box.service(), box.State.Running, box.State.ExitCode)
		}
		if box.RestartCount > c.crashes[box.service()] {
			t.Errorf("%s was restarted %d times, crashed %d times", box.service(), box.RestartCount, c.crashes[box.service()])
		}
		logs := c.docker(t, "logs", box.ID)
		for _, secret := range []string{"PRIVATE KEY", `"primaryKeyId"`} {
			if strings.Contains(logs, secret) {
				t.Errorf("%s: its log has %s", box.service(), secret)
			}
		}
	}
}

// crash kills the first process of a service as a fault of its own would: Docker does not know that somebody wanted it. The
// signal comes from a container beside it, which sees all processes.
func (c *composition) crash(t *testing.T, kind string, number int) {
	t.Helper()
	service := fmt.Sprint(kind, number)
	c.crashes[service]++
	id := c.container(t, kind, number)
	pid := strings.TrimSpace(c.docker(t, "inspect", "--format", "{{.State.Pid}}", id))
	c.docker(t, "run", "--rm", "--pid=host", "--network=none", "--user=root", "haproxy:3.2", "bash", "-c", "kill -9 "+pid)
	err := fixture.Await(t.Context(), 30*time.Second, func() error {
		if now := strings.TrimSpace(c.docker(t, "inspect", "--format", "{{.State.Pid}}", id)); now == pid || now == "0" {
			return errors.New(service + " was not started again")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
