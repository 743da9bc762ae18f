package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

// originVariable makes this program a Go server at the address in it.
const originVariable = "SPOACME_BENCH_ORIGIN"

// benchToken is a question of the length that Let's Encrypt's have.
const (
	benchToken   = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
	benchKeyAuth = benchToken + ".nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ"
)

// origin is the least that a Go server must do to answer a challenge.
func origin(address string) error {
	answers := map[string]string{challengePath + benchToken: benchKeyAuth}
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, ok := answers[r.URL.Path]; ok {
			w.Header()["Content-Type"] = []string{"application/octet-stream"}
			_, _ = io.WriteString(w, a)
			return
		}
		http.NotFound(w, r)
	}))
}

const challengePath = "/.well-known/acme-challenge/"

// BenchmarkAnswers measures how many challenges a HAProxy answers in a second: through the sidecar's SPOE agent, through
// a reverse proxy to a Go server, and out of its own configuration.
func BenchmarkAnswers(b *testing.B) {
	s := &sheet{title: "Challenge answers per second"}
	for _, version := range []string{"2.6", "3.2"} {
		during(b, func(b *scope) { answers(b, s, version) })
	}
	s.note("wrk, %d connections, %v for each sample; HAProxy, agent or server, and wrk share the machine.", wrkConnections, wrkTime)
	s.print(b)
}

// answers measures one version.
func answers(b testing.TB, s *sheet, version string) {
	contenders := []struct {
		by      string
		haproxy *fixture.HAProxy
		target  string
	}{
		{"SPOE agent", startSPOE(b, version), "≥ reverse proxy"},
		{"reverse proxy", startProxy(b, version), ""},
		{"static", startStatic(b, version), ""},
	}
	for round := range *rounds + 1 {
		for _, c := range contenders {
			got, err := wrk(b.Context(), "http://"+c.haproxy.HTTP.Addr()+challengePath+benchToken)
			if err != nil {
				b.Fatalf("%s, %s: %v", version, c.by, err)
			}
			if round == 0 { // to warm up
				continue
			}
			s.figure("HAProxy "+version, c.by, "req/s", c.target).add(got.rate)
			s.figure("HAProxy "+version+" latency", c.by, "ms", "").add(got.median.Seconds() * 1000)
		}
	}
}

// startSPOE starts HAProxy and sidecar as they are shipped, with a token in the store.
func startSPOE(b testing.TB, version string) *fixture.HAProxy {
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: version, Settings: none(), Single: true})
	fixture.StartSidecar(b, fixture.SidecarOptions{HAProxy: h})
	_, thumbprint, _ := strings.Cut(benchKeyAuth, ".")
	record := &store.Challenges{Name: "bench", Generation: 1, Thumbprint: thumbprint, Tokens: []string{benchToken}}
	data, err := store.Encode(record, store.Plain{})
	if err != nil {
		b.Fatal(err)
	}
	folder := filepath.Join(storeDir(h), string(store.KindChallenges))
	awaitAnswer(b, h, func() error {
		// An operator's edit. The sidecar takes it over within seconds; a sidecar that is just starting drops it.
		return errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(filepath.Join(folder, "bench.json"), data, 0o600))
	})
	return h
}

// storeDir is where the sidecar of a HAProxy keeps its records.
func storeDir(h *fixture.HAProxy) string { return filepath.Join(filepath.Dir(h.ConfigDir()), "store") }

// startProxy starts a HAProxy that leaves the answer to a Go server.
func startProxy(b testing.TB, version string) *fixture.HAProxy {
	port, err := fixture.ReservePort()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(port.Release)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), originVariable+"="+port.Addr())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: version, Settings: none(), Single: true, Edit: func(text string) string {
		text = answeredBy(text, "    use_backend acme_client if { path_beg "+challengePath+" }\n")
		return text + "\nbackend acme_client\n    server go " + port.Addr() + "\n"
	}})
	awaitAnswer(b, h, nil)
	return h
}

// startStatic starts a HAProxy that has the answer in its configuration.
func startStatic(b testing.TB, version string) *fixture.HAProxy {
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: version, Settings: none(), Single: true, Edit: func(text string) string {
		return answeredBy(text, "    http-request return status 200 content-type application/octet-stream hdr Cache-Control no-store string "+
			benchKeyAuth+" if { path "+challengePath+benchToken+" }\n")
	}})
	awaitAnswer(b, h, nil)
	return h
}

// awaitAnswer waits until the HAProxy answers the token, and calls again every few seconds until it does.
func awaitAnswer(b testing.TB, h *fixture.HAProxy, again func() error) {
	b.Helper()
	var called time.Time
	err := fixture.Await(b.Context(), time.Minute, func() error {
		if again != nil && time.Since(called) > 5*time.Second {
			called = time.Now()
			if err := again(); err != nil {
				return err
			}
		}
		res, err := http.Get("http://" + h.HTTP.Addr() + challengePath + benchToken)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && string(body) != benchKeyAuth {
			err = fmt.Errorf("the answer is %s %.80q", res.Status, body)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

const (
	wrkConnections = 64
	wrkTime        = 3 * time.Second
)

// throughput is what wrk has seen.
type throughput struct {
	rate   float64 // requests per second
	median time.Duration
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkMedian = regexp.MustCompile(`50%\s+([0-9.]+[a-z]+)`)
)

// wrk asks for one URL as fast as it is answered.
func wrk(ctx context.Context, url string) (throughput, error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t", "1", "-c", strconv.Itoa(wrkConnections), "-d", wrkTime.String(), "--latency", url)
	out, err := fixture.Output(cmd)
	text := string(out)
	if err != nil {
		return throughput{}, fmt.Errorf("wrk: %w: %s", err, text)
	}
	if strings.Contains(text, "Non-2xx") || strings.Contains(text, "Socket errors") {
		return throughput{}, fmt.Errorf("wrk: %s", text)
	}
	rate, median := wrkRate.FindStringSubmatch(text), wrkMedian.FindStringSubmatch(text)
	if rate == nil || median == nil {
		return throughput{}, fmt.Errorf("wrk: not understood: %s", text)
	}
	var t throughput
	if t.rate, err = strconv.ParseFloat(rate[1], 64); err == nil {
		t.median, err = time.ParseDuration(median[1])
	}
	return t, err
}
