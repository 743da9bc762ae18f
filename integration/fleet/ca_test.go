package fleet

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// TestCAChanges: haproxy.cfg of the leader names other CAs than the rest of the fleet: it leads no more. When the others name them too,
// the fleet goes over to them, with no sidecar started again.
func TestCAChanges(t *testing.T) {
	f := start(t, 2, fixture.ConsulOptions{}, settings{"SPOACME_CERTS": ""})
	f.run(t)
	before := f.awaitLeader(t, "somebody leads", func(string) bool { return true })
	first := int(before[len(before)-1] - '1')
	cas := []string{f.pebble.Directory(), "https://ca.invalid/directory"}
	f.setCA(t, first, cas[0]+","+cas[1])
	f.awaitLeader(t, "the other one leads", func(node string) bool { return node != before })
	if got := f.cas(t); !slices.Equal(got, cas[:1]) {
		t.Errorf("the fleet orders from %v when one node of two names other CAs", got)
	}
	f.setCA(t, 1-first, cas[0]+","+cas[1])
	err := fixture.Await(t.Context(), 40*time.Second, func() error {
		if got := f.cas(t); !slices.Equal(got, cas) {
			return fmt.Errorf("the fleet orders from %v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.awaitLeader(t, "somebody leads with the new ones", func(string) bool { return true })
}

// setCA changes SPOACME_CA of one node and reloads its HAProxy.
func (f *fleet) setCA(t *testing.T, i int, value string) {
	t.Helper()
	err := f.haproxy[i].Set("SPOACME_CA", value)
	if err == nil {
		err = f.haproxy[i].Reload(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// cas are those that the fleet orders from.
func (f *fleet) cas(t *testing.T) []string {
	t.Helper()
	b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/meta?raw", nil)
	var meta struct {
		CAs []string `json:"cas"`
	}
	if err == nil {
		err = json.Unmarshal(b, &meta)
	}
	if err != nil {
		t.Fatal(err)
	}
	return meta.CAs
}

// awaitLeader waits until the node that has the lock is as it should be.
func (f *fleet) awaitLeader(t *testing.T, what string, ok func(node string) bool) (node string) {
	t.Helper()
	err := fixture.Await(t.Context(), 40*time.Second, func() error {
		b, err := f.consul.Do(t.Context(), f.consul.Servers[0], http.MethodGet, "/v1/kv/le/leader", nil)
		if err != nil {
			return err
		}
		var keys []struct {
			Session string
			Value   []byte
		}
		var leader struct {
			Node string `json:"node"`
		}
		if err := json.Unmarshal(b, &keys); err != nil {
			return err
		}
		if len(keys) != 1 || keys[0].Session == "" || json.Unmarshal(keys[0].Value, &leader) != nil || !ok(leader.Node) {
			return fmt.Errorf("%s: not so: %s", what, b)
		}
		node = leader.Node
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return node
}
