//go:build docker

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// A composition is docker-compose.yml under a project name and on ports of its own.
type composition struct {
	command []string // docker compose, or Compose 1.29's docker-compose
	project string
	env     []string
	nodes   []node
	consul  string         // address of the first server
	crashes map[string]int // of each service
}

// A node is what is published of one.
type node struct {
	number       int
	https, stats string // addresses
}

func (n node) name() string   { return fmt.Sprint("node", n.number) }
func (n node) domain() string { return n.name() + ".example.com" }

func (c *composition) all() []node { return c.nodes }

func (c *composition) but(other node) []node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n node) bool { return n == other })
}

// machineCompose returns the command of the Compose that this machine has.
func machineCompose(t *testing.T) []string {
	t.Helper()
	for _, command := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if exec.Command(command[0], append(command[1:], "version")...).Run() == nil {
			return command
		}
	}
	t.Fatal("find Compose: neither `docker compose` nor `docker-compose` runs: install one")
	return nil
}

// newComposition chooses ports. At the end of the test nothing is left but the images.
func newComposition(t *testing.T, command ...string) *composition {
	t.Helper()
	project := fmt.Sprintf("%s-%d", strings.ToLower(t.Name()), os.Getpid())
	c := &composition{command: append(command, "-p", project), env: os.Environ(), project: project, crashes: map[string]int{}}
	version, _, _ := strings.Cut(c.run(t, "version"), "\n")
	t.Log(version)
	c.consul = c.publish(t, "CONSUL_PORT")
	for number := 1; number <= 3; number++ {
		c.nodes = append(c.nodes, node{
			number: number,
			https:  c.publish(t, fmt.Sprint("HTTPS_PORT_", number)),
			stats:  c.publish(t, fmt.Sprint("STATS_PORT_", number)),
		})
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			logs, _ := c.output(ctx, "logs", "--no-color", "--tail=200", "spoacme1", "spoacme2", "spoacme3", "consul1", "consul2", "consul3", "pebble")
			t.Logf("logs:\n%s", logs)
		}
		if out, err := c.output(ctx, "down", "--volumes", "-t", "3"); err != nil {
			t.Errorf("compose down: %v\n%s", err, out)
		}
	})
	return c
}

// publish gives the file a free port and returns the address.
func (c *composition) publish(t *testing.T, variable string) string {
	t.Helper()
	port, err := fixture.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	port.Release()
	c.env = append(c.env, fmt.Sprintf("%s=%d", variable, port.Number))
	return port.Addr()
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

func (c *composition) dockerOutput(ctx context.Context, args ...string) (string, error) {
	out, err := fixture.Output(exec.CommandContext(ctx, "docker", args...))
	return string(out), err
}

func (c *composition) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.dockerOutput(t.Context(), args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// A box is what Docker says of a container.
type box struct {
	ID           string
	RestartCount int
	State        struct {
		Running  bool
		ExitCode int
		Pid      int
		Health   *struct{ Status string }
	}
	Config     struct{ Labels map[string]string }
	HostConfig struct {
		ReadonlyRootfs, Privileged bool
		CapDrop, SecurityOpt       []string
	}
}

func (b box) service() string { return b.Config.Labels["com.docker.compose.service"] }

// containers returns all, those that have ended too.
func (c *composition) containers(t *testing.T) []box {
	t.Helper()
	ids := strings.Fields(c.docker(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+c.project))
	var boxes []box
	if err := json.Unmarshal([]byte(c.docker(t, append([]string{"inspect"}, ids...)...)), &boxes); err != nil {
		t.Fatal(err)
	}
	if len(boxes) != 15 {
		t.Fatalf("there are %d containers", len(boxes))
	}
	return boxes
}

// container returns the id of a service's container. The service is named by its parts: "spoacme", 1.
func (c *composition) container(t *testing.T, service ...any) string {
	t.Helper()
	for _, b := range c.containers(t) {
		if b.service() == fmt.Sprint(service...) {
			return b.ID
		}
	}
	t.Fatalf("there is no container of %s", fmt.Sprint(service...))
	return ""
}

// spoacme runs a command of spoacme in a node's sidecar.
func (c *composition) spoacme(t *testing.T, number int, args ...string) string {
	t.Helper()
	return c.docker(t, append([]string{"exec", c.container(t, "spoacme", number), "/spoacme"}, args...)...)
}
