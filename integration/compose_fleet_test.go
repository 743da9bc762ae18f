//go:build docker

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// orders returns how many orders Pebble has had.
func (c *composition) orders(t *testing.T) int {
	t.Helper()
	return strings.Count(c.docker(t, "logs", c.container(t, "pebble")), "Added order ")
}

// awaitSame waits until the nodes serve one certificate of Pebble's for the name, and not the serial old. It returns the
// serial.
func (c *composition) awaitSame(t *testing.T, name, old string, nodes []node) string {
	t.Helper()
	var serial string
	err := fixture.Await(t.Context(), time.Minute, func() error {
		serial = ""
		for _, n := range nodes {
			served, err := fixture.Fetch(t.Context(), n.https, name)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", n.name(), err)
			case !strings.HasPrefix(served.Issuer, "Pebble "):
				return fmt.Errorf("%s: issued by %s", n.name(), served.Issuer)
			case served.Serial == old:
				return fmt.Errorf("%s: still %s", n.name(), old)
			case serial != "" && served.Serial != serial:
				return fmt.Errorf("%s serves %s, the others %s", n.name(), served.Serial, serial)
			}
			if err := served.Leaf().VerifyHostname(name); err != nil {
				return err
			}
			serial = served.Serial
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

// view returns what the sidecar of a node says of everything.
func (c *composition) view(ctx context.Context, n node) (v status.View, err error) {
	id, err := c.dockerOutput(ctx, "ps", "--quiet", "--filter", "label=com.docker.compose.project="+c.project,
		"--filter", fmt.Sprint("label=com.docker.compose.service=spoacme", n.number))
	if err != nil {
		return v, err
	}
	// It ends with 1 when something is wrong.
	out, _ := c.dockerOutput(ctx, "exec", strings.TrimSpace(id), "/spoacme", "status", "--json")
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("%s: status: %s", n.name(), out)
	}
	return v, nil
}

// leader waits until one of the nodes leads, as the first of them sees it.
func (c *composition) leader(t *testing.T, nodes []node) (leader node) {
	t.Helper()
	err := fixture.Await(t.Context(), time.Minute, func() error {
		v, err := c.view(t.Context(), nodes[0])
		if err != nil {
			return err
		}
		for _, n := range nodes {
			for _, f := range v.Fleet {
				if f.Leads && f.Live && f.Name == n.name() {
					leader = n
					return nil
				}
			}
		}
		return errors.New("nobody leads")
	})
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// awaitFleet waits until each of the nodes sees all of them live, in time, and serving what is stored.
func (c *composition) awaitFleet(t *testing.T, nodes []node) {
	t.Helper()
	err := fixture.Await(t.Context(), time.Minute, func() error {
		for _, n := range nodes {
			v, err := c.view(t.Context(), n)
			if err != nil {
				return err
			}
			if !v.Ready() {
				return fmt.Errorf("%s is not ready: %+v", n.name(), v.Conditions)
			}
			for _, f := range v.Fleet {
				if !f.Live || f.Suspect || f.Behind || len(f.Differs) != 0 {
					return fmt.Errorf("%s sees %+v", n.name(), f)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// consulLeader waits until one of the nodes' servers says that it leads the cluster.
func (c *composition) consulLeader(t *testing.T, nodes []node) (leader node) {
	t.Helper()
	err := fixture.Await(t.Context(), time.Minute, func() error {
		for _, n := range nodes {
			out, err := c.dockerOutput(t.Context(), "exec", c.container(t, "consul", n.number), "consul", "info")
			if err == nil && strings.Contains(out, "leader = true") {
				leader = n
				return nil
			}
		}
		return errors.New("no Consul server leads")
	})
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// awaitHealthy waits until every health check says so.
func (c *composition) awaitHealthy(t *testing.T) {
	t.Helper()
	err := fixture.Await(t.Context(), time.Minute, func() error {
		for _, b := range c.containers(t) {
			if b.State.Running && b.State.Health != nil && b.State.Health.Status != "healthy" {
				return fmt.Errorf("%s is %s", b.service(), b.State.Health.Status)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
