//go:build docker

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// composition is docker-compose.yml, up under a name and on ports of its own.
type composition struct {
	command []string // docker compose, or Compose 1.29's docker-compose
	env     []string
	https   string // address
}

// TestCompose runs docker-compose.yml as it is: the image is built, a certificate is obtained, renewed and added while
// clients are at work, and all of it goes on after HAProxy and the sidecar were restarted.
func TestCompose(t *testing.T) {
	c := startCompose(t)
	first := c.await(t, "shop.example.com")
	worker := c.worker(t)
	c.awaitHealthy(t)

	load := fixture.StartLoad(fixture.LoadOptions{Addr: c.https, Name: "shop.example.com", New: 2, KeepAlive: 2, Pause: 10 * time.Millisecond})
	defer load.Stop()
	awaitRequests(t, load, 20)
	c.spoacme(t, "renew", "shop")
	second := c.await(t, "shop.example.com")
	c.spoacme(t, "issue", "second", "second.example.com")
	c.await(t, "second.example.com")
	awaitRequests(t, load, load.Report().Requests+20)
	report := load.Stop()

	if second == first {
		t.Errorf("serial %s is served after the renewal too", first)
	}
	if report.Failed != 0 {
		t.Errorf("%d of %d requests failed: %v", report.Failed, report.Requests, report.Errors)
	}
	if now := c.worker(t); now != worker {
		t.Errorf("HAProxy is %s now, was %s", now, worker)
	}

	for _, service := range []string{"haproxy", "spoacme"} {
		c.run(t, "restart", "-t", "5", service)
		if serial := c.await(t, "shop.example.com"); serial != second {
			t.Errorf("serial %s after a restart of %s, was %s", serial, service, second)
		}
	}
	c.awaitHealthy(t)
	c.spoacme(t, "renew", "shop")
	if serial := c.await(t, "shop.example.com"); serial == second {
		t.Errorf("serial %s is served after restarts and a renewal too", serial)
	}
}

func startCompose(t *testing.T) *composition {
	t.Helper()
	c := &composition{env: os.Environ()}
	project := fmt.Sprintf("spoacme-test-%d", os.Getpid())
	for _, command := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if exec.Command(command[0], append(command[1:], "version")...).Run() == nil {
			c.command = append(command, "-p", project)
			break
		}
	}
	if c.command == nil {
		t.Fatal("find Compose: neither `docker compose` nor `docker-compose` runs: install one")
	}
	for _, name := range []string{"HTTP_PORT", "HTTPS_PORT", "STATS_PORT"} {
		port, err := fixture.ReservePort()
		if err != nil {
			t.Fatal(err)
		}
		port.Release()
		c.env = append(c.env, name+"="+strconv.Itoa(port.Number))
		if name == "HTTPS_PORT" {
			c.https = port.Addr()
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			logs, _ := c.output(ctx, "logs", "--no-color")
			t.Logf("logs:\n%s", logs)
		}
		if out, err := c.output(ctx, "down", "--volumes", "-t", "3"); err != nil {
			t.Errorf("compose down: %v\n%s", err, out)
		}
	})
	c.run(t, "up", "--build", "--detach")
	return c
}

func (c *composition) output(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.command[0], append(c.command[1:len(c.command):len(c.command)], args...)...)
	cmd.Dir = fixture.Root()
	cmd.Env = c.env
	out, err := fixture.Output(cmd)
	return string(out), err
}

func (c *composition) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.output(t.Context(), args...)
	if err != nil {
		t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// spoacme runs a command of spoacme in the sidecar's container.
func (c *composition) spoacme(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{"exec", "-T", "spoacme", "/spoacme"}, args...)...)
}

// await waits until a certificate of Pebble's is served for the name, and returns its serial.
func (c *composition) await(t *testing.T, name string) string {
	t.Helper()
	var served fixture.Served
	err := fixture.Await(t.Context(), time.Minute, func() (err error) {
		if served, err = fixture.Fetch(t.Context(), c.https, name); err != nil {
			return err
		}
		if !strings.HasPrefix(served.Issuer, "Pebble ") {
			return errors.New("issued by " + served.Issuer)
		}
		return served.Leaf().VerifyHostname(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return served.Serial
}

// awaitHealthy waits until the sidecar's health check says that every certificate is served.
func (c *composition) awaitHealthy(t *testing.T) {
	t.Helper()
	id := strings.TrimSpace(c.run(t, "ps", "-q", "spoacme"))
	err := fixture.Await(t.Context(), time.Minute, func() error {
		out, err := exec.CommandContext(t.Context(), "docker", "inspect", "--format", "{{.State.Health.Status}}", id).Output()
		if state := strings.TrimSpace(string(out)); err == nil && state != "healthy" {
			err = errors.New("the sidecar is " + state)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var workerPID = regexp.MustCompile(`pid \d+`)

// worker returns what status says of HAProxy's process.
func (c *composition) worker(t *testing.T) string {
	t.Helper()
	return workerPID.FindString(c.spoacme(t, "status"))
}
