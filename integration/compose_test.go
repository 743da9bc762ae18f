//go:build docker

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestCompose runs docker-compose.yml as it is: a fleet comes up and has its certificate; while clients are at work at
// every HAProxy, sidecars and a Consul server are killed and a node is cut off; and no client ever notices.
func TestCompose(t *testing.T) {
	c := newComposition(t, machineCompose(t)...)
	var clients []*fixture.Load
	defer func() {
		for _, load := range clients {
			load.Stop()
		}
	}()
	steps := []struct {
		name string
		run  func(t *testing.T)
	}{
		{"up", c.comesUp},
		{"pages", c.showsPages},
		{"rights", c.hasFewRights},
		{"clients", func(t *testing.T) { clients = c.startClients(t) }},
		{"names", c.issuesForEachNode},
		{"crash", c.survivesCrash},
		{"leader", c.survivesLeader},
		{"cut", c.survivesCut},
		{"consul", c.survivesConsul},
		{"whole", c.isWhole},
		{"unnoticed", func(t *testing.T) { unnoticed(t, clients) }},
		{"restart", c.restartsFromDisk},
	}
	for _, step := range steps {
		if !t.Run(step.name, step.run) {
			t.FailNow()
		}
	}
}

// TestCompose2 brings the same file up with Compose 2.
func TestCompose2(t *testing.T) {
	compose, err := fixture.Tool("bin/docker-compose-2")
	if err != nil {
		t.Fatalf("%v (make tools-compose)", err)
	}
	c := newComposition(t, compose)
	c.comesUp(t)
	c.isWhole(t)
}

// comesUp is what the README promises: up, and all three serve one certificate, ordered once.
func (c *composition) comesUp(t *testing.T) {
	began := time.Now()
	c.run(t, "build")
	t.Logf("image built after %v", since(began))
	began = time.Now()
	c.run(t, "up", "--detach")
	t.Logf("up after %v", since(began))
	serial := c.awaitSame(t, "shop.example.com", "", c.all())
	took := since(began)
	t.Logf("certificate %s served by all three after %v", serial, took)
	if took > 2*time.Minute {
		t.Errorf("the fleet took %v to serve a certificate", took)
	}
	if orders := c.orders(t); orders != 1 {
		t.Errorf("Pebble had %d orders for one certificate", orders)
	}
	c.awaitHealthy(t)
	t.Logf("status on node1:\n%s", c.spoacme(t, 1, "status"))
}

// showsPages looks at what a browser is shown.
func (c *composition) showsPages(t *testing.T) {
	for _, n := range c.all() {
		for path, text := range map[string]string{"/": "acme_agent", "/;csv": "certificates,shop,", "/metrics": "haproxy_server_status"} {
			if body := c.get(t, "http://"+n.stats+path); !strings.Contains(body, text) {
				t.Errorf("node%d: the page %s does not have %s", n.number, path, text)
			}
		}
	}
	if body := c.get(t, "http://"+c.consul+"/ui/"); !strings.Contains(body, "<html") {
		t.Error("Consul's own page is none")
	}
	var services []struct {
		Checks []struct{ Name, Status string }
	}
	if err := json.Unmarshal([]byte(c.get(t, "http://"+c.consul+"/v1/health/service/spoacme")), &services); err != nil {
		t.Fatal(err)
	}
	if len(services) != 3 {
		t.Errorf("Consul shows %d sidecars", len(services))
	}
	for _, s := range services {
		for _, check := range s.Checks {
			if check.Status != "passing" {
				t.Errorf("Consul says of %s: %s", check.Name, check.Status)
			}
		}
	}
}

func (c *composition) get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, res.Status, err)
	}
	return string(body)
}

// hasFewRights demands of every container what the file promises: no writable root, no rights but a few named ones, and
// no process of root but HAProxy's master.
func (c *composition) hasFewRights(t *testing.T) {
	for _, box := range c.containers(t) {
		if !box.HostConfig.ReadonlyRootfs || box.HostConfig.Privileged {
			t.Errorf("%s: read-only root %v, privileged %v", box.service(), box.HostConfig.ReadonlyRootfs, box.HostConfig.Privileged)
		}
		if got := fmt.Sprint(box.HostConfig.CapDrop, box.HostConfig.SecurityOpt); got != "[ALL] [no-new-privileges:true]" {
			t.Errorf("%s: dropped capabilities and security options are %s", box.service(), got)
		}
		if !box.State.Running {
			continue // once, at the start
		}
		// A health check that just begins is root's for a moment.
		err := fixture.Await(t.Context(), 10*time.Second, func() error { return c.ofRoot(t, box) })
		if err != nil {
			t.Error(err)
		}
	}
	for _, n := range c.all() {
		if out, err := c.dockerOutput(t.Context(), "exec", c.container(t, "haproxy", n.number), "touch", "/etc/haproxy/x"); err == nil {
			t.Errorf("haproxy%d can write to its root: %s", n.number, out)
		}
	}
}

// ofRoot returns an error that names a process of root in the container, HAProxy's master excepted.
func (c *composition) ofRoot(t *testing.T, box box) error {
	_, processes, _ := strings.Cut(c.docker(t, "top", box.ID, "-eo", "uid,pid,args"), "\n")
	for line := range strings.Lines(processes) {
		field := strings.Fields(line)
		master := strings.HasPrefix(box.service(), "haproxy") && field[1] == fmt.Sprint(box.State.Pid)
		if field[0] == "0" && !master {
			return fmt.Errorf("%s: a process of root: %s", box.service(), strings.TrimSpace(line))
		}
	}
	return nil
}

// startClients puts clients to work at every HAProxy.
func (c *composition) startClients(t *testing.T) []*fixture.Load {
	var clients []*fixture.Load
	for _, n := range c.all() {
		load := fixture.StartLoad(fixture.LoadOptions{Addr: n.https, Name: "shop.example.com", New: 1, KeepAlive: 1, Pause: 50 * time.Millisecond})
		clients = append(clients, load)
		awaitRequests(t, load, 10)
	}
	return clients
}

// unnoticed demands that the clients saw no failure, and no certificate that was there before the last one.
func unnoticed(t *testing.T, clients []*fixture.Load) {
	for i, load := range clients {
		report := load.Stop()
		t.Logf("node%d: %d requests, %d handshakes, %d failed, %d certificates", i+1, report.Requests, report.Handshakes, report.Failed, len(report.Serials))
		if report.Failed != 0 {
			t.Errorf("node%d: %d of %d requests failed: %v", i+1, report.Failed, report.Requests, report.Errors)
		}
		for j := 1; j < len(report.Serials); j++ {
			if old, next := report.Serials[j-1], report.Serials[j]; !old.Last.Before(next.First) {
				t.Errorf("node%d: %s was served at %v, after %s at %v", i+1, old.Serial, old.Last, next.Serial, next.First)
			}
		}
	}
}

// restartsFromDisk restarts HAProxy and sidecar of a node, which serves the same certificate again.
func (c *composition) restartsFromDisk(t *testing.T) {
	before := c.awaitSame(t, "shop.example.com", "", c.all())
	c.run(t, "restart", "-t", "5", "haproxy1", "spoacme1")
	if after := c.awaitSame(t, "shop.example.com", "", c.all()); after != before {
		t.Errorf("serial %s after a restart, was %s", after, before)
	}
	c.awaitHealthy(t)
}

func since(began time.Time) time.Duration { return time.Since(began).Round(100 * time.Millisecond) }
