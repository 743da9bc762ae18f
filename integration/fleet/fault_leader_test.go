package fleet

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// atFinalize does something once, when the next order was finalized and before the leader hears of it.
func (f *fleet) atFinalize(do func()) (done <-chan struct{}) {
	reached := make(chan struct{})
	var once sync.Once
	f.ca.Meddle(func(c fixture.Call, pass func() fixture.Answer) fixture.Answer {
		a := pass()
		if c.Kind == "finalize" {
			once.Do(func() {
				do()
				close(reached)
			})
		}
		return a
	})
	return reached
}

// closed waits for a channel to be closed.
func closed(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: it never came to that", what)
	}
}

// TestLeaderLost takes the leader out of the fleet in every way, each time in the middle of an order: another one takes
// over in time, stays on the order, and there is one certificate.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{Servers: 3}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 3)

	t.Log("somebody ends the leader's session")
	f.sessionDestroyed(t, 2)
	t.Log("SIGTERM")
	f.terminated(t, 3)
	t.Log("kill -9")
	f.killed(t, 4)
	t.Log("kill -9 and a restart at once")
	f.crashed(t, 5)
	t.Log("SIGSTOP and SIGCONT")
	f.frozen(t, 6)
}

// sessionDestroyed ends the session of the lock in the middle of an order.
func (f *fleet) sessionDestroyed(t *testing.T, certificates int) {
	t.Helper()
	node, session, err := f.lock(t)
	must(t, err)
	done := f.atFinalize(func() {
		_, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodPut, "/v1/session/destroy/"+session, nil)
		if err != nil {
			t.Error(err)
		}
	})
	f.ask(t, f.other(node), "shop")
	closed(t, done, "finalize")
	begin := time.Now()
	f.leader(t, 10*time.Second, session)
	t.Logf("another term after %v", time.Since(begin).Round(time.Millisecond))
	f.renewed(t, 30*time.Second, shop, certificates)
}

// terminated ends the leader as a host that shuts down does.
func (f *fleet) terminated(t *testing.T, certificates int) {
	t.Helper()
	node, session := f.leader(t, 10*time.Second, "")
	begin := time.Now()
	ended := make(chan time.Duration, 1)
	go func() {
		f.sidecar[node].Pause()
		ended <- time.Since(begin)
	}()
	f.leader(t, 30*time.Second, session)
	took := time.Since(begin)
	t.Logf("SIGTERM: another leads after %v, the process ended after %v", took.Round(time.Millisecond), (<-ended).Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("SIGTERM: another leads after %v", took)
	}
	must(t, f.sidecar[node].Restart())
	f.ready(t, 20*time.Second, 3)
	f.ask(t, node, "shop")
	f.renewed(t, 30*time.Second, shop, certificates)
}

// crashed kills the leader in the middle of an order, and what looks after processes starts it again: its successor ends its
// term, and nobody waits until that ends by itself.
func (f *fleet) crashed(t *testing.T, certificates int) {
	t.Helper()
	f.dies(t, "kill -9 and restart", 10*time.Second, func(node int) {
		if err := f.sidecar[node].Restart(); err != nil {
			t.Error(err)
		}
	})
	f.renewed(t, 30*time.Second, shop, certificates)
}

// killed kills the leader when the authority has signed and the leader does not know.
func (f *fleet) killed(t *testing.T, certificates int) {
	t.Helper()
	node := f.dies(t, "kill -9", 25*time.Second, func(int) {})
	f.renewedBut(t, 20*time.Second, node)
	must(t, f.sidecar[node].Restart())
	f.renewed(t, 20*time.Second, shop, certificates)
	f.ready(t, 30*time.Second, 3)
}

// dies kills the leader when an order was finalized, does what comes next, and returns which node it was when there is a leader
// again, which must be within the limit.
func (f *fleet) dies(t *testing.T, what string, limit time.Duration, next func(node int)) int {
	t.Helper()
	node, session := f.leader(t, 10*time.Second, "")
	var begin time.Time
	done := f.atFinalize(func() {
		f.sidecar[node].Kill9()
		begin = time.Now()
		next(node)
	})
	f.ask(t, f.other(node), "shop")
	closed(t, done, "finalize")
	f.ca.Meddle(nil)
	f.leader(t, 40*time.Second, session)
	took := time.Since(begin)
	t.Logf("%s: one leads after %v", what, took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("%s: one leads after %v, at most %v", what, took, limit)
	}
	return node
}

// renewedBut waits until all nodes but one serve the last certificate.
func (f *fleet) renewedBut(t *testing.T, limit time.Duration, node int) {
	t.Helper()
	all := f.haproxy
	defer func() { f.haproxy = all }()
	f.haproxy = append(append([]*fixture.HAProxy{}, all[:node]...), all[node+1:]...)
	issued := f.pebble.Issued()
	await(t, limit, "the other nodes", func() error { return f.serve(t, shop, issued[len(issued)-1].Serial) })
}

// frozen stops the leader for longer than its lease when it was about to hear that the authority has signed. It goes on
// as if it still led, and nothing of what it then does may count.
func (f *fleet) frozen(t *testing.T, certificates int) {
	t.Helper()
	node, session := f.leader(t, 10*time.Second, "")
	done := f.atFinalize(func() {
		if err := f.sidecar[node].Freeze(); err != nil {
			t.Error(err)
		}
	})
	f.ask(t, f.other(node), "shop")
	closed(t, done, "finalize")
	begin := time.Now()
	f.leader(t, 40*time.Second, session)
	t.Logf("SIGSTOP: another leads after %v", time.Since(begin).Round(time.Millisecond))
	f.renewedBut(t, 20*time.Second, node)
	stored, err := f.get(t, "issued/shop")
	must(t, err)

	must(t, f.sidecar[node].Thaw())
	f.renewed(t, 20*time.Second, shop, certificates)
	f.ready(t, 30*time.Second, 3)
	after, err := f.get(t, "issued/shop")
	must(t, err)
	if stored == nil || after == nil || stored.ModifyIndex != after.ModifyIndex {
		t.Error("the leader that was stopped wrote the certificate once more")
	}
	if order, err := f.get(t, "order/shop"); err != nil || order != nil {
		t.Errorf("an order is left over: %v", err)
	}
	if now, _, err := f.lock(t); err != nil || now == node {
		t.Errorf("the leader that was stopped leads again: %v", err)
	}
}
