package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/file"
)

// responder answers http-01 questions from the Challenges records, as the agents of a fleet do.
type responder struct {
	mu     sync.Mutex
	tokens map[string]string
}

func (r *responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	token := strings.TrimPrefix(req.URL.Path, "/.well-known/acme-challenge/")
	r.mu.Lock()
	thumb, ok := r.tokens[token]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	fmt.Fprint(w, token+"."+thumb)
}

// follow keeps the table in step with the store and acks.
func (r *responder) follow(ctx context.Context, s store.Store) error {
	return s.Follow(ctx, func([]store.Key) {
		l, err := s.List(ctx, store.KindChallenges)
		if err != nil {
			return
		}
		tokens := map[string]string{}
		var generation uint64
		for _, e := range l.Entries {
			c := e.Record.(*store.Challenges)
			for _, t := range c.Tokens {
				tokens[t] = c.Thumbprint
			}
			generation = max(generation, c.Generation)
		}
		r.mu.Lock()
		r.tokens = tokens
		r.mu.Unlock()
		_ = s.Ack(ctx, generation)
	}, store.KindChallenges)
}

type bench struct {
	pebble *fixture.Pebble
	store  *file.Store
}

func startIssuer(tb testing.TB) *bench {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Setenv("PEBBLE_AUTHZREUSE", "0")
	b := &bench{pebble: fixture.StartPebble(tb, fixture.PebbleOptions{
		HTTPPort: l.Addr().(*net.TCPAddr).Port, AuthzRetryAfter: 3 * time.Second, OrderRetryAfter: 5 * time.Second,
	})}
	if b.store, err = file.Open(tb.TempDir(), file.Options{}); err != nil {
		tb.Fatal(err)
	}
	pem, err := os.ReadFile(b.pebble.CAFile())
	if err != nil {
		tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	logger := slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	i, err := issuer.New(issuer.Config{Store: b.store, Logger: logger, Settings: issuer.Settings{
		CAs:  []issuer.CA{{Directory: b.pebble.Directory()}},
		HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64}},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	r := &responder{}
	srv := &http.Server{Handler: r}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() { _ = r.follow(ctx, b.store) })
	wg.Go(func() { _ = i.Run(ctx) })
	tb.Cleanup(func() {
		cancel()
		_ = srv.Close()
		wg.Wait()
		_ = b.store.Close()
	})
	return b
}

// demand asks for certificates and waits until all are there.
func (b *bench) demand(tb testing.TB, certs map[string]store.Spec) time.Duration {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	op := store.Put(&store.Demand{Node: "one", Certificates: certs, Since: start})
	if err := b.store.Commit(ctx, nil, nil, []store.Op{op}); err != nil {
		tb.Fatal(err)
	}
	var took time.Duration
	issued := map[string]bool{}
	_ = b.store.Follow(ctx, func(keys []store.Key) {
		for _, k := range keys {
			if _, ok := certs[k.Name]; ok {
				issued[k.Name] = true
			}
		}
		if len(issued) == len(certs) {
			took = time.Since(start)
			cancel()
		}
	}, store.KindIssued)
	if took == 0 {
		tb.Fatal("not all certificates were issued")
	}
	return took
}

// The issuer against a real ACME server with its usual Retry-After: one certificate, many at once, one with many names.
// Every certificate costs one order, and all of them one account.
func TestIssuerPebble(t *testing.T) {
	b := startIssuer(t)
	many := func(prefix string, n int) map[string]store.Spec {
		m := map[string]store.Spec{}
		for i := range n {
			m[fmt.Sprint(prefix, i)] = store.Spec{Domains: []string{fmt.Sprintf("%s%d.example.com", prefix, i)}}
		}
		return m
	}
	var hundred []string
	for i := range 100 {
		hundred = append(hundred, fmt.Sprintf("h%02d.example.com", i))
	}
	t.Log("1 certificate:", b.demand(t, many("one", 1)))
	t.Log("20 certificates:", b.demand(t, many("twenty", 20)))
	t.Log("200 certificates:", b.demand(t, many("many", 200)))
	t.Log("100 names:", b.demand(t, map[string]store.Spec{"wide": {Domains: hundred}}))
	if orders, issued := len(b.pebble.Orders()), len(b.pebble.Issued()); orders != 222 || issued != 222 {
		t.Errorf("%d orders and %d certificates, want 222 of each", orders, issued)
	}
	accounts, err := b.store.List(t.Context(), store.KindAccount)
	if err != nil || len(accounts.Entries) != 1 {
		t.Errorf("%d accounts, %v", len(accounts.Entries), err)
	}
}
