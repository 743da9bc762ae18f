package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), d)
	tb.Cleanup(cancel)
	return ctx
}

func TestBarrierOfThreeNodes(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	nodes := []*node{f.start(f.config("a", 0)), f.start(f.config("b", 0)), f.start(f.config("c", 0))}
	l := lead(t, nodes[0])

	commit(t, nodes[0], l, store.Put(challenges("shop", 1)))
	if missing, err := nodes[0].Barrier(within(t, 5*time.Second), 1); err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	for i, n := range nodes {
		if n.token("shop") != 1 {
			t.Errorf("node %d passed the barrier without the token", i)
		}
	}

	slow := make(chan struct{})
	nodes[2].setSlow(slow)
	commit(t, nodes[0], l, store.Put(challenges("mail", 2)))
	start := time.Now()
	missing, err := nodes[0].Barrier(within(t, 500*time.Millisecond), 2)
	if err != nil || !slices.Equal(missing, []string{"c"}) || time.Since(start) < 400*time.Millisecond {
		t.Fatalf("a slow node: missing %q after %v, %v", missing, time.Since(start), err)
	}
	start = time.Now()
	missing, err = nodes[0].Barrier(within(t, 5*time.Second), 2)
	if err != nil || !slices.Equal(missing, []string{"c"}) || time.Since(start) > time.Second {
		t.Fatalf("a suspect is waited for: %q after %v, %v", missing, time.Since(start), err)
	}
	close(slow)
	eventually(t, 5*time.Second, "the suspect has caught up", func() bool {
		missing, err = nodes[0].Barrier(within(t, time.Second), 2)
		return err == nil && len(missing) == 0
	})

	nodes[2].stop()
	commit(t, nodes[0], l, store.Put(challenges("news", 3)))
	start = time.Now()
	if missing, err := nodes[0].Barrier(within(t, 5*time.Second), 3); err != nil || len(missing) > 0 || time.Since(start) > 2*time.Second {
		t.Fatalf("a node that left is waited for: %q after %v, %v", missing, time.Since(start), err)
	}

	// Another leader: what was acked in the term before counts no more, and generations may come again.
	commit(t, nodes[0], l, store.Delete(challenges("shop", 0).Key()), store.Delete(challenges("mail", 0).Key()), store.Delete(challenges("news", 0).Key()))
	l.Release()
	m := lead(t, nodes[1])
	slow = make(chan struct{})
	nodes[0].setSlow(slow)
	commit(t, nodes[1], m, store.Put(challenges("shop", 1)))
	if missing, err := nodes[1].Barrier(within(t, 700*time.Millisecond), 1); err != nil || !slices.Equal(missing, []string{"a"}) {
		t.Fatalf("an ack of another term was counted: %q, %v", missing, err)
	}
	close(slow)
	eventually(t, 5*time.Second, "acked anew", func() bool {
		missing, err := nodes[1].Barrier(within(t, time.Second), 1)
		return err == nil && len(missing) == 0
	})
}

func TestFeedTellsOnlyWhatChanged(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	s, _ := f.run(f.config("leader", 0))
	l := lead(t, s)
	for i := range 100 {
		commit(t, s, l, store.Put(certificate(fmt.Sprint("cert", i), 1)))
	}
	n := f.start(f.config("a", 0))
	eventually(t, 5*time.Second, "everything was read", func() bool { return n.cert("cert99") != "" })
	before := n.fullReads()
	for i := range 20 {
		commit(t, s, l, store.Put(certificate("cert7", i+2)))
	}
	want := fmt.Sprintf("%040X", 21)
	eventually(t, 5*time.Second, "the last change was read", func() bool { return n.cert("cert7") == want })
	if n.fullReads() != before {
		t.Error("everything was read for one change")
	}
	for _, k := range n.told {
		if k.Name != "cert7" {
			t.Error("told of", k)
		}
	}
	manifest, err := s.Manifest(t.Context())
	if err != nil || len(manifest) != 100 || manifest["cert7"].Fingerprint != want {
		t.Errorf("manifest of %d, %v, %v", len(manifest), manifest["cert7"], err)
	}
}

func TestRestartOfANode(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	leader := f.start(f.config("leader", 0))
	l := lead(t, leader)
	cfg := f.config("a", 0)
	cfg.StateDir = t.TempDir()
	first := f.start(cfg)
	live := func(name string) bool {
		nodes, err := leader.Nodes(t.Context())
		return err == nil && slices.ContainsFunc(nodes, func(n consul.Node) bool { return n.Name == name && n.Live })
	}
	eventually(t, 5*time.Second, "the node is live", func() bool { return live("a") })
	_ = first // as if it had been killed: its session lives on

	start := time.Now()
	second := f.start(cfg)
	commit(t, leader, l, store.Put(challenges("shop", 1)))
	eventually(t, 5*time.Second, "the restarted node takes part", func() bool {
		missing, err := leader.Barrier(within(t, 2*time.Second), 1)
		return err == nil && len(missing) == 0 && second.token("shop") == 1 && live("a")
	})
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestDuplicateNodeName(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	cfg := f.config("a", 0)
	cfg.StateDir = t.TempDir()
	f.start(cfg)
	other := f.open(f.config("a", 0))
	eventually(t, 5*time.Second, "the first one is live", func() bool {
		nodes, err := other.Nodes(t.Context())
		return err == nil && len(nodes) == 1 && nodes[0].Live
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	start := time.Now()
	if err := other.Run(ctx); !errors.Is(err, consul.ErrDuplicate) || !strings.Contains(err.Error(), "SPOACME_NODE") {
		t.Errorf("the second one of the same name: %v", err)
	}
	t.Logf("refused after %v", time.Since(start).Round(time.Second))
	nodes, err := other.Nodes(t.Context())
	if err != nil || len(nodes) != 1 || !nodes[0].Live {
		t.Error("the first one was harmed", nodes, err)
	}
}

func TestPrefixDeletedUnderALeader(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	cfg := f.config("a", 0)
	cfg.StateDir = t.TempDir()
	n := f.start(cfg)
	l := lead(t, n)
	commit(t, n, l, store.Put(certificate("shop", 1)))
	eventually(t, 5*time.Second, "known", func() bool { return n.cert("shop") != "" })
	if _, err := f.c.Do(t.Context(), f.c.Servers[0], http.MethodDelete, "/v1/kv/"+f.prefix+"/?recurse=true", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Context().Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the lease goes on without its lock")
	}
	if err := n.Commit(t.Context(), l, nil, []store.Op{store.Put(certificate("shop", 2))}); !errors.Is(err, store.ErrRefused) {
		t.Errorf("a late write: %v", err)
	}
	start := time.Now()
	m := lead(t, n)
	t.Logf("leads again after %v: %v", time.Since(start), context.Cause(l.Context()))
	// The fleet's id is the same, so what is sealed elsewhere stays readable, and followers go on.
	commit(t, n, m, store.Put(certificate("shop", 3)))
	want := fmt.Sprintf("%040X", 3)
	eventually(t, 5*time.Second, "told of the new one", func() bool { return n.cert("shop") == want })
	commit(t, n, m, store.Put(challenges("shop", 1)))
	if missing, err := n.Barrier(within(t, 15*time.Second), 1); err != nil || len(missing) > 0 {
		t.Error("barrier", missing, err)
	}
}

func TestRestore(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	leader, n := f.start(f.config("leader", 0)), f.start(f.config("a", 0))
	l := lead(t, leader)
	for i := range 30 {
		commit(t, leader, l, store.Put(certificate(fmt.Sprint("cert", i), 1)))
	}
	commit(t, leader, l, store.Put(challenges("shop", 1)))
	if missing, err := leader.Barrier(within(t, 5*time.Second), 1); err != nil || len(missing) > 0 {
		t.Fatal("barrier", missing, err)
	}
	snapshot, err := f.c.Do(t.Context(), f.c.Servers[0], http.MethodGet, "/v1/snapshot", nil)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, leader, l, store.Put(certificate("cert3", 2)), store.Put(certificate("cert4", 2)))
	commit(t, leader, l, store.Put(challenges("shop", 9)))
	if missing, err := leader.Barrier(within(t, 5*time.Second), 9); err != nil || len(missing) > 0 {
		t.Fatal("barrier", missing, err)
	}
	want := fmt.Sprintf("%040X", 2)
	eventually(t, 5*time.Second, "known", func() bool { return n.cert("cert4") == want })
	n.mu.Lock()
	n.told = nil
	n.mu.Unlock()
	full := n.fullReads()

	if _, err := f.c.Do(t.Context(), f.c.Servers[0], http.MethodPut, "/v1/snapshot", snapshot); err != nil {
		t.Fatal(err)
	}
	// The leader's lock is as it was; its next write finds the fence moved back.
	err = leader.Commit(t.Context(), l, nil, []store.Op{store.Put(certificate("cert9", 5))})
	if !errors.Is(err, store.ErrRefused) && !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write after the restore: %v", err)
	}
	start := time.Now()
	m := lead(t, leader)
	t.Logf("leads again after %v: %v", time.Since(start).Round(time.Millisecond), context.Cause(l.Context()))
	eventually(t, 20*time.Second, "told of what the restore changed", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.Contains(n.told, issuedKey("cert3")) && slices.Contains(n.told, issuedKey("cert4"))
	})
	n.mu.Lock()
	if len(n.told) > 10 {
		t.Errorf("told of %d certificates", len(n.told))
	}
	n.mu.Unlock()
	if n.fullReads() != full {
		t.Log("everything was read again")
	}
	slow := make(chan struct{})
	n.setSlow(slow)
	commit(t, leader, m, store.Put(challenges("mail", 2)))
	if missing, err := leader.Barrier(within(t, time.Second), 2); err == nil {
		t.Errorf("nodes had no time to come back, and the barrier knows who is live: %q", missing)
	}
	if missing, err := leader.Barrier(within(t, 10*time.Second), 2); err != nil || !slices.Equal(missing, []string{"a"}) {
		t.Errorf("generation 9 of before the restore was counted: %q, %v", missing, err)
	}
	close(slow)
	eventually(t, 30*time.Second, "acked", func() bool {
		missing, err := leader.Barrier(within(t, time.Second), 2)
		return err == nil && len(missing) == 0
	})
}

func TestEditsByOthers(t *testing.T) {
	f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{}))
	leader, n := f.start(f.config("leader", 0)), f.start(f.config("a", 0))
	l := lead(t, leader)
	commit(t, leader, l, store.Put(certificate("shop", 1)), store.Put(certificate("mail", 1)))
	eventually(t, 5*time.Second, "known", func() bool { return n.cert("mail") != "" })
	told := func(name string) func() bool {
		return func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Contains(n.told, issuedKey(name))
		}
	}
	n.mu.Lock()
	n.told = nil
	n.mu.Unlock()
	f.edit(t, "issued/shop", nil)
	eventually(t, 10*time.Second, "told of the deletion", told("shop"))
	f.edit(t, "issued/mail", []byte("{"))
	eventually(t, 10*time.Second, "told of the garbage", told("mail"))
	eventually(t, 10*time.Second, "the manifest says so", func() bool {
		m, err := leader.Manifest(t.Context())
		_, there := m["shop"]
		return err == nil && !there && m["mail"].Fingerprint == ""
	})

	// An edit that is followed at once by something of the leader's own, which goes on so that there is no second of quiet between.
	n.mu.Lock()
	n.told = nil
	n.mu.Unlock()
	f.edit(t, "issued/mail", []byte("[]"))
	for i := range 5 {
		<-time.After(200 * time.Millisecond)
		commit(t, leader, l, store.Put(certificate("own", i+1)))
	}
	eventually(t, 10*time.Second, "told of the edit before the leader's own", told("mail"))

	commit(t, leader, l, store.Put(certificate("shop", 2)))
	eventually(t, 5*time.Second, "known again", func() bool { return n.cert("shop") != "" })
	l.Release()
	n.mu.Lock()
	n.told = nil
	n.mu.Unlock()
	f.edit(t, "issued/shop", []byte("{"))
	lead(t, leader)
	eventually(t, 10*time.Second, "told of what was written while nobody led", told("shop"))
}
