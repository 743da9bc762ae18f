package consul_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

func budget(n string) *store.Budget { return &store.Budget{CA: "ca", Error: n} }

// stored returns what the budget says.
func stored(tb testing.TB, s store.Store) string {
	tb.Helper()
	e, err := s.Get(tb.Context(), budget("").Key())
	if errors.Is(err, store.ErrAbsent) {
		return ""
	}
	if err != nil {
		tb.Fatal(err)
	}
	return e.Record.(*store.Budget).Error
}

func (f *fleet) through(p *proxy, node string) consul.Config {
	cfg := f.config(node, 0)
	cfg.URL = "consul://" + p.addr() + "/" + f.prefix
	return cfg
}

func TestLostReplies(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	p := startProxy(t, f.c.Servers[0].URL())
	s, other := f.open(f.through(p, "a")), f.open(f.config("b", 0))
	l := lead(t, s)
	put := func(n string) error { return s.Commit(t.Context(), l, nil, []store.Op{store.Put(budget(n))}) }
	if err := put("1"); err != nil {
		t.Fatal(err)
	}

	p.set(once(isWrite, loseReply))
	if err := put("2"); err != nil {
		t.Errorf("stored, but the answer was lost: %v", err)
	}
	p.set(once(isWrite, lose))
	if err := put("3"); !errors.Is(err, store.ErrRefused) || !errors.Is(err, store.ErrStorage) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("the request was lost: %v", err)
	}
	if got := stored(t, other); got != "2" {
		t.Errorf("the budget is %q", got)
	}
	if err := put("4"); err != nil {
		t.Errorf("the term goes on: %v", err)
	}

	// Now for so long that the term ends.
	p.set(func(r *http.Request) fate {
		if isWrite(r) {
			return loseReply
		}
		if r.Method == http.MethodPut {
			return lose
		}
		return pass
	})
	start := time.Now()
	if err := put("5"); !errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrRefused) {
		t.Errorf("nothing is answered: %v", err)
	}
	if d := time.Since(start); d > 11*time.Second {
		t.Errorf("it took %v to say so", d)
	}
	if l.Context().Err() == nil {
		t.Error("the lease outlives its time")
	}
	if got := stored(t, other); got != "5" {
		t.Errorf("the budget is %q", got)
	}
}

// A write that was under way when the lease ended arrives while another node leads.
func TestLateWrite(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	p := startProxy(t, f.c.Servers[0].URL())
	s, other := f.open(f.through(p, "a")), f.open(f.config("b", 0))
	l := lead(t, s)

	held, arrived := make(chan struct{}), make(chan struct{})
	var one sync.Once
	late := http.Header{}
	p.set(func(r *http.Request) fate {
		if isWrite(r) {
			one.Do(func() {
				// A copy that does not end with the store's patience.
				body := readAll(t, r)
				go func() {
					defer close(arrived)
					<-held
					_, err := f.c.Do(context.Background(), f.c.Servers[0], http.MethodPut, "/v1/txn", body)
					if err != nil {
						late.Set("refused", err.Error())
					}
				}()
			})
		}
		if r.Method == http.MethodGet {
			return pass
		}
		return lose
	})
	ended := make(chan error, 1)
	start := time.Now()
	go func() { ended <- s.Commit(context.Background(), l, nil, []store.Op{store.Put(budget("late"))}) }()
	m := lead(t, other)
	took := time.Since(start)
	if l.Context().Err() == nil {
		t.Error("two leaders")
	}
	t.Logf("takeover from a leader that is cut off after %v", took.Round(time.Millisecond))
	if took > 25*time.Second {
		t.Errorf("takeover took %v", took)
	}
	if err := <-ended; !errors.Is(err, store.ErrUnknown) {
		t.Errorf("the late write: %v", err)
	}
	commit(t, other, m, store.Put(budget("new")))
	close(held)
	<-arrived
	if late.Get("refused") == "" {
		t.Error("Consul took the late write")
	}
	if got := stored(t, other); got != "new" {
		t.Errorf("the budget is %q", got)
	}
}

func TestTakeover(t *testing.T) {
	c := fixture.StartConsul(t, fixture.ConsulOptions{})
	for name, test := range map[string]struct {
		hurt func(*victim) error
		then func(*testing.T, *victim)
	}{
		"kill": {func(v *victim) error { return v.cmd.Process.Kill() }, func(*testing.T, *victim) {}},
		"freeze": {func(v *victim) error { return v.cmd.Process.Signal(syscall.SIGSTOP) }, func(t *testing.T, v *victim) {
			if err := v.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			t.Log(v.expect(t, "ended: true"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, c)
			cfg := f.config("heir", 0)
			cfg.Plain, cfg.Keys = true, nil
			v := startVictim(t, cfg.URL)
			heir := f.open(cfg)
			if err := test.hurt(v); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			l := lead(t, heir)
			took := time.Since(start)
			t.Logf("takeover after %v", took.Round(time.Millisecond))
			if took > 25*time.Second {
				t.Errorf("takeover took %v", took)
			}
			commit(t, heir, l, store.Put(budget("mine")))
			test.then(t, v)
			if err := heir.Commit(t.Context(), l, nil, nil); err != nil {
				t.Error("the heir's lease was hurt:", err)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{Servers: 3}))
	a, b := f.open(f.config("a", 0)), f.open(f.config("b", 1))
	l := lead(t, a)
	var took time.Duration
	done := make(chan struct{})
	var start time.Time
	go func() {
		defer close(done)
		m, err := b.Lead(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		took = time.Since(start)
		m.Release()
	}()
	eventually(t, 5*time.Second, "the leader's name is known", func() bool { n, err := b.Leader(t.Context()); return err == nil && n == "a" })
	start = time.Now()
	l.Release()
	<-done
	t.Logf("takeover after a release: %v", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Error("too long")
	}
}

// Servers die, stand still and come back. The lock is neither lost for good nor held twice.
func TestServersDie(t *testing.T) {
	c := fixture.StartConsul(t, fixture.ConsulOptions{Servers: 3})
	f := newFleet(t, c)
	leader := c.Leader(t.Context())
	var mine int
	for i, s := range c.Servers {
		if s != leader {
			mine = i
		}
	}
	n := f.start(f.config("a", mine))
	l := lead(t, n)
	commit(t, n, l, store.Put(budget("1")))

	leader.Kill()
	start := time.Now()
	var err error
	eventually(t, 40*time.Second, "writing again after Consul's leader died", func() bool {
		err = n.Commit(within(t, 5*time.Second), l, nil, []store.Op{store.Put(budget("2"))})
		if errors.Is(err, store.ErrRefused) && l.Context().Err() != nil {
			l = lead(t, n)
		}
		return err == nil
	})
	t.Logf("writing again after %v, lease %v", time.Since(start).Round(time.Millisecond), context.Cause(l.Context()))
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitLeader(t.Context()); err != nil {
		t.Fatal(err)
	}

	for i, s := range c.Servers {
		if i != mine {
			if err := s.Freeze(); err != nil {
				t.Fatal(err)
			}
		}
	}
	start = time.Now()
	select {
	case <-l.Context().Done():
		t.Logf("the lease ended %v after the majority froze: %v", time.Since(start).Round(time.Millisecond), context.Cause(l.Context()))
	case <-time.After(15 * time.Second):
		t.Error("the lease goes on without a majority")
	}
	if _, err := n.Get(within(t, 3*time.Second), budget("").Key()); err == nil {
		t.Log("a read was answered without a majority")
	}
	for i, s := range c.Servers {
		if i != mine {
			if err := s.Thaw(); err != nil {
				t.Fatal(err)
			}
		}
	}
	start = time.Now()
	m := lead(t, n)
	commit(t, n, m, store.Put(budget("3")))
	t.Logf("leading again %v after the thaw", time.Since(start).Round(time.Millisecond))
	commit(t, n, m, store.Put(challenges("shop", 1)))
	eventually(t, 40*time.Second, "the node takes part again", func() bool {
		missing, err := n.Barrier(within(t, 2*time.Second), 1)
		return err == nil && len(missing) == 0
	})
}
