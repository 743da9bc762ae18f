package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// A program is an HAProxy that can run the demo.
type program struct {
	path    string
	version string // whole, such as 2.6.12-1+deb12u3
	minor   string // such as 2.6
}

// wanted are the versions that are fetched where the machine has none, the preferred one first. The last one belongs to
// Debian 12 itself.
var wanted = []string{"3.2", "3.0", "2.6"}

// findHAProxy returns the machine's own HAProxy if it will do, else one below .tools, which is fetched if need be.
func findHAProxy(ctx context.Context, progress func(string)) (program, error) {
	var refused error
	for _, name := range []string{os.Getenv("HAPROXY"), "haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		p, err := inspect(ctx, path)
		if err == nil {
			return p, nil
		}
		refused = err
	}
	if refused != nil {
		progress(refused.Error() + "; another one is used")
	}
	for _, version := range wanted {
		if path, err := fixture.Tool("haproxy/" + version + "/haproxy"); err == nil {
			if p, err := inspect(ctx, path); err == nil {
				return p, nil
			}
		}
	}
	var failed error
	for _, version := range wanted {
		p, err := fetch(ctx, version, progress)
		if err == nil || ctx.Err() != nil {
			return p, err
		}
		failed = errors.Join(failed, err)
	}
	return program{}, fmt.Errorf("no HAProxy: run `apt-get install haproxy` as root, or set HAPROXY to one: %w", failed)
}

var versionWords = regexp.MustCompile(`[Vv]ersion ((\d+)\.(\d+)[^ ]*)`)

// inspect runs an HAProxy and tells whether it is new enough and has what haproxy-conf/haproxy.cfg needs.
func inspect(ctx context.Context, path string) (program, error) {
	out, err := fixture.Output(exec.CommandContext(ctx, path, "-vv"))
	if err != nil {
		return program{}, fmt.Errorf("%s does not run: %w", path, err)
	}
	m := versionWords.FindStringSubmatch(string(out))
	if m == nil {
		return program{}, fmt.Errorf("%s does not tell its version", path)
	}
	major, _ := strconv.Atoi(m[2])
	minor, _ := strconv.Atoi(m[3])
	if major < 2 || major == 2 && minor < 2 {
		return program{}, fmt.Errorf("%s is version %s, too old", path, m[1])
	}
	if !strings.Contains(strings.ToLower(string(out)), "prometheus") {
		return program{}, fmt.Errorf("%s has no Prometheus exporter", path)
	}
	return program{path: path, version: m[1], minor: m[2] + "." + m[3]}, nil
}

// tested tells whether this is one of the versions whose master process the fixture knows.
func (p program) tested() bool { return slices.Contains(fixture.Versions(), p.minor) }

// fetch runs the script that installs one version below .tools.
func fetch(ctx context.Context, version string, progress func(string)) (program, error) {
	script := filepath.Join(fixture.Root(), "integration", "tools", "haproxy.sh")
	target := filepath.Join(fixture.Root(), ".tools", "haproxy")
	cmd := exec.CommandContext(ctx, script, target, version)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return program{}, fmt.Errorf("fetch haproxy %s: %w", version, err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return program{}, fmt.Errorf("fetch haproxy %s: %w", version, err)
	}
	var last string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		last = strings.TrimPrefix(lines.Text(), "haproxy.sh: ")
		progress(last)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return program{}, ctx.Err()
		}
		return program{}, fmt.Errorf("fetch haproxy %s: %s", version, last)
	}
	return inspect(ctx, filepath.Join(target, version, "haproxy"))
}
