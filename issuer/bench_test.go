package issuer

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// bench is an issuer between a store in memory and a model CA, in a synctest bubble.
type bench struct {
	t     *testing.T
	ca    *model
	store *storetest.Memory
	cfg   Config
	stop  func() // ends the issuer and waits for it
	log   *lines

	commits int // for tests that count them
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newBench makes a bench that does not run yet.
func newBench(t *testing.T) *bench {
	b := &bench{t: t, ca: newModel(t), store: storetest.NewMemory(), stop: func() {}, log: &lines{}}
	b.store.AckAll = true
	b.ca.validate = b.published
	b.cfg = Config{
		Store: b.store, Settings: Settings{CAs: []CA{{Directory: b.ca.directory()}}, HTTP: b.ca.client()},
		Logger: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return b
}

// published answers as a node does whose token table is the store.
func (b *bench) published(token string) string {
	l, err := b.store.List(context.Background(), store.KindChallenges)
	if err != nil {
		return err.Error()
	}
	for _, e := range l.Entries {
		c := e.Record.(*store.Challenges)
		for _, have := range c.Tokens {
			if have == token {
				return token + "." + c.Thumbprint
			}
		}
	}
	return "not found"
}

// start runs an issuer until stop.
func (b *bench) start() {
	b.t.Helper()
	i, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.run(i)
}

func (b *bench) run(i *Issuer) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.stop = func() {}
	}
}

// demand is one node's haproxy.cfg: "name=domain,domain".
func (b *bench) demand(certs ...string) {
	b.t.Helper()
	b.demandOf("one", certs...)
}

func (b *bench) demandOf(node string, certs ...string) {
	b.t.Helper()
	d := &store.Demand{Node: node, Certificates: map[string]store.Spec{}, Since: time.Now()}
	for _, c := range certs {
		name, domains, _ := strings.Cut(c, "=")
		d.Certificates[name] = store.Spec{Domains: strings.Split(domains, ",")}
	}
	b.put(d)
}

func (b *bench) put(r store.Record) {
	b.t.Helper()
	if err := b.store.Commit(context.Background(), nil, nil, []store.Op{store.Put(r)}); err != nil {
		b.t.Fatal(err)
	}
}

// leave puts a record that only a leader writes, as a restore brings it back.
func (b *bench) leave(r store.Record) {
	b.t.Helper()
	data, err := store.Encode(r, store.Plain{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Edit(r.Key(), data)
}

// read returns a record, nil when there is none.
func read[R store.Record](b *bench, kind store.Kind, name string) (r R) {
	b.t.Helper()
	e, err := b.store.Get(context.Background(), store.Key{Kind: kind, Name: name})
	if err == nil {
		r = e.Record.(R)
	}
	return r
}

func (b *bench) count(kind store.Kind) int {
	b.t.Helper()
	l, err := b.store.List(context.Background(), kind)
	if err != nil {
		b.t.Fatal(err)
	}
	return len(l.Entries)
}

// settle lets d pass and everything come to rest.
func (b *bench) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// rig changes the CA while it may be at work.
func (b *bench) rig(change func(ca *model)) {
	b.ca.mu.Lock()
	defer b.ca.mu.Unlock()
	change(b.ca)
}

// clean demands that nothing is left of orders.
func (b *bench) clean() {
	b.t.Helper()
	for _, kind := range []store.Kind{store.KindOrder, store.KindAttempt, store.KindChallenges} {
		if n := b.count(kind); n != 0 {
			b.t.Errorf("%d records of kind %s are left", n, kind)
		}
	}
}

// noSecrets demands that the log tells nothing that is to be kept.
func (b *bench) noSecrets() {
	b.t.Helper()
	if s := b.log.String(); strings.Contains(s, "PRIVATE KEY") || strings.Contains(s, "BEGIN CERT") {
		b.t.Error("a key or a certificate in the log")
	}
}

// bubble runs a test with a bench of its own in a bubble.
func bubble(t *testing.T, name string, f func(t *testing.T, b *bench)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(26 * 366 * 24 * time.Hour) // a bubble begins in the year 2000
			b := newBench(t)
			defer func() {
				b.stop()
				b.noSecrets()
				if t.Failed() {
					t.Log(b.log.String())
				}
			}()
			f(t, b)
		})
	})
}
