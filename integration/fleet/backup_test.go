package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestPeerAnswers: the authority asks only the HAProxy of a node whose own sidecar can't know the tokens, and HAProxy asks the agent
// of another node, which stands in its configuration as backup server. First the sidecar is dead, then it lives and Consul is out
// of its reach. When Consul is out of everybody's reach, every HAProxy still has an agent to ask.
func TestPeerAnswers(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{Servers: 3}, settings{})
	const server = "    server agent "
	for i, h := range f.haproxy {
		peer := f.haproxy[(i+1)%len(f.haproxy)].Agent.Addr()
		must(t, h.Edit(func(text string) string {
			return strings.Replace(text, server, "    server peer "+peer+" check inter 1s backup\n"+server, 1)
		}))
		must(t, h.Restart())
	}
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.ready(t, 20*time.Second, 3)
	f.agents(t, 0, "UP", "UP")

	f.ownDead(t)
	f.ownCutOff(t)
	f.allCutOff(t)
}

// ownDead kills the sidecar of the node that is asked.
func (f *fleet) ownDead(t *testing.T) {
	t.Helper()
	t.Log("the sidecar is dead")
	f.sidecar[0].Kill9()
	f.balancer.Set(f.haproxy[0].HTTP.Addr())
	f.agents(t, 0, "DOWN", "UP")
	f.leads(t, 60*time.Second, 0)
	f.ask(t, 1, "shop")
	f.renewedWithout(t, 60*time.Second, 0, 2)
	must(t, f.sidecar[0].Restart())
	f.renewed(t, 30*time.Second, shop, 2)
	f.agents(t, 0, "UP", "UP")
	f.ready(t, 30*time.Second, 3)
}

// ownCutOff takes that node's Consul away.
func (f *fleet) ownCutOff(t *testing.T) {
	t.Helper()
	t.Log("the sidecar lives, and its Consul is gone")
	begin := time.Now()
	f.consul.Servers[0].Kill()
	f.agents(t, 0, "DOWN", "UP")
	t.Logf("HAProxy asks the peer %v after Consul was lost", time.Since(begin).Round(time.Millisecond))
	f.leads(t, 90*time.Second, 0)
	f.ask(t, 1, "shop")
	f.renewedWithout(t, 60*time.Second, 0, 3)
	must(t, f.consul.Servers[0].Start())
	begin = time.Now()
	f.agents(t, 0, "UP", "UP")
	t.Logf("HAProxy asks its own sidecar again %v after Consul was started", time.Since(begin).Round(time.Millisecond))
	f.renewed(t, 60*time.Second, shop, 3)
	f.ready(t, 60*time.Second, 3)
}

// allCutOff takes Consul away from everybody.
func (f *fleet) allCutOff(t *testing.T) {
	t.Helper()
	t.Log("all of Consul is gone: with nobody better off the agents go on")
	for _, s := range f.consul.Servers {
		s.Kill()
	}
	for i := range f.sidecar {
		f.unready(t, 40*time.Second, i, "FAIL store")
	}
	answered := func() error {
		for i := range f.sidecar {
			if f.agent(t, i, "agent", "UP") != nil && f.agent(t, i, "peer", "UP") != nil {
				return fmt.Errorf("lb%d has nobody to ask", i+1)
			}
		}
		return nil
	}
	said := func() (n int) {
		for _, s := range f.sidecar {
			n += strings.Count(s.Log(), "the other agent in its backend")
		}
		return n
	}
	// Those that stand aside notice one after the other that nobody is better off.
	quiet, since := said(), time.Now()
	await(t, 60*time.Second, "they settle", func() error {
		if n := said(); n != quiet || answered() != nil {
			quiet, since = n, time.Now()
		}
		if time.Since(since) < 5*time.Second {
			return errors.Join(errors.New("not yet"), answered())
		}
		return nil
	})
	hold(t, 8*time.Second, "every HAProxy has an agent to ask", answered)
	if n := said(); n > quiet || n > 1+len(f.sidecar) {
		t.Errorf("agents stood aside %d times: they take turns", n)
	}
}

// agents waits until HAProxy says so of the node's own agent and of the peer's.
func (f *fleet) agents(t *testing.T, node int, own, peer string) {
	t.Helper()
	await(t, 40*time.Second, fmt.Sprintf("agents of lb%d", node+1), func() error {
		if err := f.agent(t, node, "agent", own); err != nil {
			return err
		}
		return f.agent(t, node, "peer", peer)
	})
}

func (f *fleet) agent(t *testing.T, node int, server, state string) error {
	t.Helper()
	stat, err := f.haproxy[node].Command("show stat")
	if err != nil {
		return err
	}
	for line := range strings.Lines(stat) {
		const status = 17
		if r := strings.Split(line, ","); len(r) > status && r[0] == "acme_agent" && r[1] == server && strings.HasPrefix(r[status], state) {
			return nil
		}
	}
	return fmt.Errorf("%s is not %s", server, state)
}
