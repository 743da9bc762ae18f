package consul_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
	"github.com/spoacme/spoacme/store/seal"
	"github.com/spoacme/spoacme/store/storetest"
)

var prefixes atomic.Int64

// fleet is the stores that share one prefix of a Consul.
type fleet struct {
	tb     testing.TB
	c      *fixture.Consul
	prefix string
	keys   *seal.Keys
}

func newFleet(tb testing.TB, c *fixture.Consul) *fleet {
	tb.Helper()
	return &fleet{tb: tb, c: c, prefix: "le-" + string(rune('a'+prefixes.Add(1)%26)) + "-" + itoa(prefixes.Load()), keys: newKeys(tb)}
}

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }

func newKeys(tb testing.TB) *seal.Keys {
	tb.Helper()
	f, err := seal.New()
	if err != nil {
		tb.Fatal(err)
	}
	i, err := seal.New()
	if err != nil {
		tb.Fatal(err)
	}
	k, err := seal.Load(f, i)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// config is what a node of the fleet is opened with, on one of the servers.
func (f *fleet) config(node string, server int) consul.Config {
	return consul.Config{
		URL:    "consul://" + f.c.Servers[server%len(f.c.Servers)].HTTP.Addr() + "/" + f.prefix,
		Node:   node,
		Keys:   f.keys,
		Logger: logger(),
		Getenv: func(name string) string {
			if name == "CONSUL_HTTP_TOKEN" {
				return f.c.Token
			}
			return ""
		},
	}
}

func logger() *slog.Logger {
	if os.Getenv("VERBOSE") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// open opens a store without running it.
func (f *fleet) open(cfg consul.Config) *consul.Store {
	f.tb.Helper()
	s, err := consul.Open(cfg)
	if err != nil {
		f.tb.Fatal(err)
	}
	return s
}

// run opens and runs a node until the test ends or stop is called.
func (f *fleet) run(cfg consul.Config) (s *consul.Store, stop func()) {
	f.tb.Helper()
	s = f.open(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			f.tb.Errorf("node %s: %v", cfg.Node, err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	f.tb.Cleanup(stop)
	return s, stop
}

func TestSuite(t *testing.T) {
	for _, version := range []string{"", "1.8"} {
		t.Run("version "+version, func(t *testing.T) {
			c := fixture.StartConsul(t, fixture.ConsulOptions{Version: version})
			suite(t, c)
		})
	}
}

func TestSuiteOnThreeServers(t *testing.T) {
	suite(t, fixture.StartConsul(t, fixture.ConsulOptions{Servers: 3}))
}

func suite(t *testing.T, c *fixture.Consul) {
	var fleets sync.Map
	of := func(s store.Store) *fleet { f, _ := fleets.Load(s); return f.(*fleet) }
	open := func(t *testing.T) store.Store {
		f := newFleet(t, c)
		s, _ := f.run(f.config("node1", int(prefixes.Load())))
		fleets.Store(store.Store(s), f)
		return s
	}
	storetest.Run(t, open, storetest.Hooks{
		Edit: func(t *testing.T, s store.Store, key store.Key, data []byte) {
			t.Helper()
			of(s).edit(t, key.String(), data)
		},
		EndLease: func(t *testing.T, s store.Store) {
			t.Helper()
			of(s).endSessions(t, "spoacme leader")
		},
	})
}

// edit writes a key as a stranger would; nil deletes it.
func (f *fleet) edit(tb testing.TB, key string, data []byte) {
	tb.Helper()
	method := http.MethodPut
	if data == nil {
		method = http.MethodDelete
	}
	if _, err := f.c.Do(tb.Context(), f.c.Servers[0], method, "/v1/kv/"+f.prefix+"/"+key, data); err != nil {
		tb.Fatal(err)
	}
}

// endSessions destroys the session that holds the fleet's lock.
func (f *fleet) endSessions(tb testing.TB, _ string) {
	tb.Helper()
	b, err := f.c.Do(tb.Context(), f.c.Servers[0], http.MethodGet, "/v1/kv/"+f.prefix+"/leader", nil)
	var pairs []struct{ Session string }
	if err == nil {
		err = json.Unmarshal(b, &pairs)
	}
	if err != nil || strings.TrimSpace(pairs[0].Session) == "" {
		tb.Fatal(err, pairs)
	}
	if _, err := f.c.Do(tb.Context(), f.c.Servers[0], http.MethodPut, "/v1/session/destroy/"+pairs[0].Session, nil); err != nil {
		tb.Fatal(err)
	}
}
