package integration

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
)

// The fixture counts what an ordinary ACME client does, and its root verifies what the client got.
func TestPebbleFixture(t *testing.T) {
	lego, err := fixture.Tool("bin/lego")
	if err != nil {
		t.Fatal(err)
	}
	port, err := fixture.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Release()
	pebble := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: port.Number})
	issue := func(name string) error {
		cmd := exec.CommandContext(t.Context(), lego, "--server", pebble.Directory(), "--email", "ops@example.com",
			"--accept-tos", "--path", filepath.Join(t.TempDir(), "lego"), "--domains", name,
			"--http", "--http.port", "127.0.0.1:"+strconv.Itoa(port.Number), "run")
		cmd.Env = append(cmd.Environ(), "LEGO_CA_CERTIFICATES="+pebble.CAFile())
		out, err := fixture.Output(cmd)
		if err != nil {
			t.Logf("lego: %s", out)
		}
		return err
	}
	counts := func(orders, issued, asked int) {
		t.Helper()
		if len(pebble.Orders()) != orders || len(pebble.Issued()) != issued || len(pebble.Asked()) < asked {
			t.Errorf("orders %v, issued %v, asked %v; want %d, %d and at least %d",
				pebble.Orders(), pebble.Issued(), pebble.Asked(), orders, issued, asked)
		}
	}

	if err := issue("one.example.com"); err != nil {
		t.Fatal(err)
	}
	counts(1, 1, 1)
	before, err := pebble.Management(t.Context(), "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	if err := pebble.Restart(); err != nil {
		t.Fatal(err)
	}
	after, err := pebble.Management(t.Context(), "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == string(after) {
		t.Error("the root survived a restart")
	}
	if err := issue("two.example.com"); err != nil {
		t.Fatal(err)
	}
	counts(2, 2, 2)
	if err := pebble.SetDNS(t.Context(), "three.example.com"); err != nil {
		t.Fatal(err)
	}
	if issue("three.example.com") == nil {
		t.Error("a name that does not resolve was certified")
	}
	counts(3, 2, 2)
	if strings.Contains(strings.Join(pebble.Asked(), " "), "three.example.com/") {
		t.Errorf("asked %v", pebble.Asked())
	}
}
