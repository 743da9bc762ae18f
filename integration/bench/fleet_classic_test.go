package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store/storetest"
)

// watchHandler is what people have: Consul's watch gives it all certificates, it writes them and reloads HAProxy.
const watchHandler = `#!/bin/sh
jq -r '.[] | .Key + " " + .Value' | while read -r key value; do
    printf %s "$value" | base64 -d > "$1/${key##*/}.pem"
done
kill -USR2 "$2"
echo done >> "$3"
`

// BenchmarkFleetClassic measures the same as BenchmarkFleet and BenchmarkLargeFleet done the usual way: a central tool writes to
// Consul, on every node a watch runs a script that writes all files, and HAProxy is reloaded.
func BenchmarkFleetClassic(b *testing.B) {
	s := &sheet{title: "The same by Consul's watch, a script and a reload"}
	ca := storetest.NewCA(b, "Bench")
	all := certificates(b, ca, many)
	for _, c := range []struct{ size, nodes, changes int }{{100, 3, 5}, {100, 10, 5}, {many, 3, 1}} {
		during(b, func(b *scope) {
			f := newFleet(b, 3, ca, all[:c.size])
			nodes := make([]*fixture.HAProxy, c.nodes)
			for i := range nodes {
				nodes[i] = f.startHAProxy(none(), f.bundles)
			}
			f.upload()
			f.classic(s, fmt.Sprintf("%d certificates, %d nodes", c.size, c.nodes), nodes, c.changes)
		})
	}
	s.note("Three Consul servers, HAProxy 3.2 with one thread, all on this machine; until a TLS handshake shows the new certificate.")
	s.print(b)
}

// classic renews certificates, one after the other.
func (f *fleet) classic(s *sheet, what string, nodes []*fixture.HAProxy, changes int) {
	f.b.Helper()
	handled := make([]string, len(nodes))
	for i, h := range nodes {
		handled[i] = filepath.Join(f.dir, fmt.Sprint("handled", i))
		defer f.startWatch(i, h, handled[i])()
	}
	f.handled(handled, 1)
	for i := range changes {
		name := f.all[(i*37)%len(f.all)].Name
		bundle := f.ca.Bundle(storetest.Leaf{Domains: []string{name + ".example.com"}})
		begun := time.Now()
		if _, err := f.consul.Do(context.Background(), f.consul.Servers[0], http.MethodPut, "/v1/kv/classic/"+name, bundle.PEM()); err != nil {
			f.b.Fatal(err)
		}
		took := make([]float64, len(nodes))
		var wg sync.WaitGroup
		for i, h := range nodes {
			wg.Go(func() { took[i] = servedSince(f.b, h, name+".example.com", bundle.Serial, begun) })
		}
		wg.Wait()
		served := s.figure(what+": written to served", fmt.Sprintf("%d HAProxies", len(nodes)), "ms", "")
		served.samples = append(served.samples, took...)
		last := s.figure(what+": written to served", "the last HAProxy", "ms", "")
		last.add(slices.Max(took))
		f.handled(handled, i+2)
		settle(context.Background(), time.Second)
	}
}

// upload puts all certificates where the watches look.
func (f *fleet) upload() {
	f.b.Helper()
	type kv struct {
		Verb, Key string
		Value     []byte
	}
	for part := range slices.Chunk(f.all, 40) {
		var ops []map[string]kv
		for _, c := range part {
			ops = append(ops, map[string]kv{"KV": {"set", "classic/" + c.Name, f.bundles[c.Name]}})
		}
		body, err := json.Marshal(ops)
		if err == nil {
			_, err = f.consul.Do(context.Background(), f.consul.Servers[0], http.MethodPut, "/v1/txn", body)
		}
		if err != nil {
			f.b.Fatal(err)
		}
	}
}

// startWatch runs Consul's own watch beside a HAProxy.
func (f *fleet) startWatch(i int, h *fixture.HAProxy, handled string) (stop func()) {
	f.b.Helper()
	tool, err := fixture.Tool("bin/consul")
	script := filepath.Join(f.dir, "handler.sh")
	if err == nil {
		err = os.WriteFile(script, []byte(watchHandler), 0o700)
	}
	cmd := exec.Command(tool, "watch", "-http-addr="+f.consul.Servers[i%len(f.consul.Servers)].HTTP.Addr(), "-type=keyprefix", "-prefix=classic/",
		script, filepath.Dir(h.CrtList()), strconv.Itoa(h.MasterPID()), handled)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		f.b.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// handled waits until every handler has ended so many times.
func (f *fleet) handled(files []string, times int) {
	f.b.Helper()
	f.await(3*time.Minute, "the handlers have ended", func() bool {
		return !slices.ContainsFunc(files, func(file string) bool {
			b, _ := os.ReadFile(file)
			return bytes.Count(b, []byte("done")) < times
		})
	})
}

// servedSince makes handshakes until HAProxy serves a certificate.
func servedSince(b testing.TB, h *fixture.HAProxy, name, serial string, begun time.Time) float64 {
	err := fixture.Await(context.Background(), 3*time.Minute, func() error {
		served, err := fixture.Fetch(context.Background(), h.HTTPS.Addr(), name)
		if err == nil && served.Leaf().SerialNumber.Text(16) != serial {
			err = fmt.Errorf("%s is not served yet", serial)
		}
		return err
	})
	if err != nil {
		b.Error(err)
	}
	return ms(time.Since(begun))
}
