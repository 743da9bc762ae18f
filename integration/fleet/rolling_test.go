package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// counter stands between one sidecar and its Consul and counts what is asked.
type counter struct {
	server *httptest.Server

	mu    sync.Mutex
	asked map[string]int
}

func startCounter(t *testing.T, target string) *counter {
	t.Helper()
	u, err := url.Parse(target)
	must(t, err)
	c := &counter{asked: map[string]int{}}
	pass := httputil.NewSingleHostReverseProxy(u)
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.asked[r.Method+" "+what(r.URL.Path)]++
		c.mu.Unlock()
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		c.server.CloseClientConnections()
		c.server.Close()
	})
	return c
}

// what is a path without ids.
func what(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) > 4 && parts[2] == "session" {
		parts = parts[:4]
	}
	return strings.Join(parts, "/")
}

// take returns what was asked since the last call.
func (c *counter) take() (total int, asked map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked, c.asked = c.asked, map[string]int{}
	for _, n := range asked {
		total += n
	}
	return total, asked
}

// TestRolling restarts everything under load while certificates are renewed, measures how long a certificate takes from
// Consul to all HAProxies, and counts what the nodes ask Consul when there is nothing to do.
func TestRolling(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{Servers: 3}, settings{})
	var counters []*counter
	for i := range f.haproxy {
		c := startCounter(t, f.consul.Servers[i].URL())
		counters = append(counters, c)
		f.sidecar = append(f.sidecar, f.node(t, i, "", "SPOACME_STORE=consul://"+strings.TrimPrefix(c.server.URL, "http://")+"/le"))
	}
	f.renewed(t, 30*time.Second, shop, 1)
	f.ready(t, 20*time.Second, 3)
	done := f.rolling(t)
	f.timed(t, f.clients(t, shop, 5*time.Millisecond), 1+done, 50)
	f.atRest(t, counters)
}

// rolling restarts one node after the other, HAProxy and sidecar, each while a certificate is renewed. A load balancer before
// the HAProxies takes the node out first. It returns how many renewals there were.
func (f *fleet) rolling(t *testing.T) int {
	t.Helper()
	front := fixture.StartBalancer(t)
	in := func(not int) {
		var addrs []string
		for i, h := range f.haproxy {
			if i != not {
				addrs = append(addrs, h.HTTPS.Addr())
			}
		}
		front.Set(addrs...)
		f.asked(not)
	}
	in(-1)
	load := fixture.StartLoad(fixture.LoadOptions{Addr: front.Addr(), Name: shop, New: 4, Pause: 5 * time.Millisecond})
	for i := range f.haproxy {
		in(i)
		hold(t, 500*time.Millisecond, "connections end", func() error { return nil })
		f.ask(t, f.other(i), "shop")
		begin := time.Now()
		must(t, f.sidecar[i].Restart())
		f.acked(t, i, begin)
		must(t, f.haproxy[i].Restart())
		f.renewed(t, 30*time.Second, shop, 2+i)
		in(-1)
	}
	r := load.Stop()
	wellServed(t, "a rolling restart", r)
	t.Logf("a rolling restart: %d handshakes, %d failed", r.Handshakes, r.Failed)
	return len(f.haproxy)
}

// ack is what a node says that a barrier looks at.
type ack struct {
	Epoch      string `json:"e"`
	Generation uint64 `json:"g"`
}

func (f *fleet) ack(t *testing.T, node int) (a ack, err error) {
	t.Helper()
	v, err := f.get(t, fmt.Sprintf("ack/lb%d", node+1))
	if err == nil && (v == nil || v.Session == "") {
		err = errors.New("not in the fleet")
	}
	if err == nil {
		err = json.Unmarshal(v.Value, &a)
	}
	return a, err
}

// acked waits until a restarted node has all the tokens that another one has, and demands that it was soon.
func (f *fleet) acked(t *testing.T, node int, begin time.Time) {
	t.Helper()
	await(t, 20*time.Second, "ack", func() error {
		mine, err := f.ack(t, node)
		if err != nil {
			return err
		}
		theirs, err := f.ack(t, f.other(node))
		if err == nil && (mine.Epoch != theirs.Epoch || mine.Generation < theirs.Generation) {
			err = fmt.Errorf("it has %v, another node %v", mine, theirs)
		}
		return err
	})
	took := time.Since(begin)
	t.Logf("lb%d takes part in barriers again %v after its restart began", node+1, took.Round(time.Millisecond))
	if took > barrierAgain {
		t.Errorf("lb%d takes part in barriers again only after %v", node+1, took)
	}
}

// barrierAgain is a second on a machine with nothing else to do.
const barrierAgain = 3 * time.Second

// timed renews many times and reports how long it takes from Consul to the HAProxies.
func (f *fleet) timed(t *testing.T, loads []*fixture.Load, before, renewals int) {
	t.Helper()
	written, order := map[string]time.Time{}, []string{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var group sync.WaitGroup
	group.Go(func() {
		f.watchKey(ctx, "issued/shop", func(value string, at time.Time) {
			mu.Lock()
			defer mu.Unlock()
			_, rest, _ := strings.Cut(value, `"serial":"`)
			serial, _, _ := strings.Cut(rest, `"`)
			if _, known := written[serial]; !known {
				written[serial] = at
				order = append(order, serial)
			}
		})
	})
	for i := range renewals {
		f.ask(t, i%3, "shop")
		f.renewed(t, 30*time.Second, shop, before+1+i)
	}
	// A few were replaced before every client had another connection.
	await(t, 10*time.Second, "clients", func() error {
		for _, l := range loads {
			if n := len(l.Report().Serials); n < before+renewals-4 {
				return fmt.Errorf("%d certificates were seen", n)
			}
		}
		return nil
	})
	cancel()
	group.Wait()
	mu.Lock()
	defer mu.Unlock()
	first := map[string]time.Time{} // when the last HAProxy began to serve it
	seen := map[string]int{}
	for _, l := range loads {
		for _, s := range l.Report().Serials {
			seen[s.Serial]++
			if s.First.After(first[s.Serial]) {
				first[s.Serial] = s.First
			}
		}
	}
	var took []time.Duration
	for n, serial := range order[1:] { // the first was there before
		if seen[serial] < len(loads) {
			continue
		}
		d := max(0, first[serial].Sub(written[serial]))
		if took = append(took, d); d > time.Second {
			t.Logf("renewal %d, serial %s, took %v", n+1, serial, d.Round(time.Millisecond))
		}
	}
	slices.Sort(took)
	if len(took) < renewals-3 {
		t.Fatalf("only %d of %d renewals were seen by all clients", len(took), renewals)
	}
	t.Logf("certificate in Consul to served by all 3 HAProxies, %d renewals: p50 %v, p99 %v, most %v", len(took),
		took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}

// watchKey calls saw for every value of a key, until ctx ends.
func (f *fleet) watchKey(ctx context.Context, key string, saw func(value string, at time.Time)) {
	index := uint64(0)
	for ctx.Err() == nil {
		address := fmt.Sprintf("%s/v1/kv/le/%s?raw&wait=30s&index=%d", f.consul.Servers[0].URL(), key, index)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		at := time.Now()
		var text strings.Builder
		_ = resp.Write(&text)
		resp.Body.Close()
		index, _ = strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64)
		saw(text.String(), at)
	}
}

// atRest counts requests when nothing happens.
func (f *fleet) atRest(t *testing.T, counters []*counter) {
	t.Helper()
	idle := func() error { return nil }
	hold(t, 5*time.Second, "the last renewal is told", idle)
	for _, c := range counters {
		c.take()
	}
	begin := time.Now()
	hold(t, time.Minute, "at rest", idle) // what a node reads now and then it reads within a minute
	leader, _, err := f.lock(t)
	must(t, err)
	for i, c := range counters {
		total, asked := c.take()
		rate := float64(total) / time.Since(begin).Seconds()
		t.Logf("lb%d (leads: %v) asks Consul %.2f times a second at rest: %v", i+1, i == leader, rate, asked)
		if rate >= 1 {
			t.Errorf("lb%d asks Consul %.2f times a second at rest, want less than 1", i+1, rate)
		}
	}
}
