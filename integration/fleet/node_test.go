package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

// TestNodeSessionLost ends a node's session in the middle of an order, before the tokens are published and after: the node goes on
// answering, the order is neither lost nor placed twice, and the node is back in the fleet by itself.
func TestNodeSessionLost(t *testing.T) {
	t.Parallel()
	f := start(t, 3, fixture.ConsulOptions{}, settings{})
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.clients(t, shop, 20*time.Millisecond)
	f.ready(t, 20*time.Second, 3)
	leader, _ := f.leader(t, 10*time.Second, "")
	node := f.other(leader)
	for i, kind := range []string{"order", "challenge"} {
		var once sync.Once
		lost := make(chan struct{})
		f.ca.Meddle(func(c fixture.Call, pass func() fixture.Answer) fixture.Answer {
			if c.Kind == kind {
				once.Do(func() {
					f.endSession(t, node)
					close(lost)
				})
			}
			return pass()
		})
		f.ask(t, leader, "shop")
		closed(t, lost, kind)
		begin := time.Now()
		f.renewed(t, 30*time.Second, shop, 2+i)
		f.ready(t, 20*time.Second, 3)
		t.Logf("session lost at %s: live again after %v", kind, time.Since(begin).Round(time.Millisecond))
		if now, _, err := f.lock(t); err != nil || now != leader {
			t.Errorf("lb%d leads: %v", now+1, err)
		}
	}
	for i, s := range f.sidecar {
		if log := s.Log(); strings.Contains(log, "not every node has the tokens") || strings.Contains(log, "certificate not issued") {
			t.Errorf("lb%d:\n%s", i+1, log)
		}
	}
}

// endSession ends the session that a node's ack is bound to.
func (f *fleet) endSession(t *testing.T, node int) {
	p, err := f.get(t, fmt.Sprintf("ack/lb%d", node+1))
	if err == nil && (p == nil || p.Session == "") {
		err = errors.New("it has none")
	}
	if err == nil {
		_, err = f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodPut, "/v1/session/destroy/"+p.Session, nil)
	}
	if err != nil {
		t.Errorf("the session of lb%d: %v", node+1, err)
	}
}

// TestAbsentForAWeek: what only a node asks for that has not been seen for more than seven days is wanted no more; it stays served,
// and is wanted again, at no cost, when the node is back.
func TestAbsentForAWeek(t *testing.T) {
	t.Parallel()
	f := start(t, 2, fixture.ConsulOptions{}, settings{})
	must(t, errors.Join(f.haproxy[1].Set("SPOACME_CERTS", "shop,own"), f.haproxy[1].Set("SPOACME_CERT_own", "own.example.com"), f.haproxy[1].Restart()))
	f.run(t)
	f.renewed(t, 30*time.Second, shop, 1)
	f.renewed(t, 30*time.Second, "own.example.com", 1)
	f.sidecar[1].Pause()
	for _, away := range []struct {
		days   int
		wanted bool
	}{{6, true}, {8, false}} {
		f.lastSeen(t, "lb2", time.Now().Add(-time.Duration(away.days)*24*time.Hour))
		if away.wanted {
			hold(t, 5*time.Second, "it counts for seven days", func() error { return f.source(t, "own", "lb2", true) })
		} else {
			await(t, 20*time.Second, "after that it does not", func() error { return f.source(t, "own", "lb2", false) })
		}
	}
	must(t, f.source(t, "shop", "lb1", true))
	must(t, f.serve(t, "own.example.com", f.ca.IssuedFor(f.pebble, "own.example.com")[0].Serial))
	must(t, f.sidecar[1].Restart())
	await(t, 20*time.Second, "it is back", func() error { return f.source(t, "own", "lb2", true) })
	f.ready(t, 20*time.Second, 2)
	f.counted(t, "own.example.com", 1)
}

// lastSeen sets when a node last said that it asks for what it asks for.
func (f *fleet) lastSeen(t *testing.T, node string, at time.Time) {
	t.Helper()
	p, err := f.get(t, "demand/"+node)
	must(t, err)
	r, err := store.Decode(store.Key{Kind: store.KindDemand, Name: node}, p.Value, store.Plain{})
	must(t, err)
	r.(*store.Demand).Seen = at.UTC()
	text, err := store.Encode(r, store.Plain{})
	must(t, err)
	f.write(t, "demand/"+node, text)
}

// source fails unless a node is, or is not, one of those that a certificate is wanted for.
func (f *fleet) source(t *testing.T, certificate, node string, wanted bool) error {
	t.Helper()
	p, err := f.get(t, "wanted/"+certificate)
	if err != nil {
		return err
	}
	var w struct{ Sources []string }
	if err := json.Unmarshal(p.Value, &w); err != nil {
		return err
	}
	if strings.Contains(strings.Join(w.Sources, " "), node) != wanted {
		return fmt.Errorf("%s is wanted for %v", certificate, w.Sources)
	}
	return nil
}
