package consul_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/consul"
)

// facts lists what is issued without chains and keys, and demands that it is what a full listing says.
func facts(t *testing.T, s *consul.Store) store.Listing {
	t.Helper()
	short, err := s.ListFacts(t.Context(), store.KindIssued)
	if err != nil {
		t.Fatal(err)
	}
	full, err := s.List(t.Context(), store.KindIssued)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range full.Entries {
		store.DropPEM(e.Record)
	}
	if !reflect.DeepEqual(short.Entries, full.Entries) || len(short.Unreadable) != len(full.Unreadable) {
		t.Fatalf("%d entries (%v unreadable) are not the %d of a full listing (%v)", len(short.Entries), short.Unreadable, len(full.Entries), full.Unreadable)
	}
	return short
}

// A process that starts again fetches what has changed meanwhile, and no more.
func TestFactsSurviveRestart(t *testing.T) {
	for _, version := range []string{"", "1.8"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, fixture.StartConsul(t, fixture.ConsulOptions{Version: version}))
			leader := f.open(f.config("leader", 0))
			l := lead(t, leader)
			for i := range 130 {
				commit(t, leader, l, store.Put(certificate(fmt.Sprintf("cert%03d", i), i+1)))
			}
			p := startProxy(t, f.c.Servers[0].URL())
			cfg := f.config("node", 0)
			cfg.URL, cfg.StateDir = "consul://"+p.addr()+"/"+f.prefix, t.TempDir()
			var asked atomic.Int64 // certificates that were asked for together
			p.set(func(r *http.Request) fate {
				if isTxn(r) {
					b := readAll(t, r)
					r.Body = io.NopCloser(bytes.NewReader(b))
					n := int64(strings.Count(string(b), f.prefix+"/issued/cert"))
					if asked.Add(n) == n && n > 0 { // one is deleted just before the first are read
						f.edit(t, "issued/cert007", nil)
					}
				}
				return pass
			})
			s, stop := f.run(cfg)
			if n := len(facts(t, s).Entries); n != 129 || asked.Load() < 130 {
				t.Fatalf("%d certificates at first, %d asked for", n, asked.Load())
			}
			stop()
			commit(t, leader, l, store.Put(certificate("cert001", 1001)), store.Put(certificate("new", 1002)), store.Delete(issuedKey("cert002")))
			f.edit(t, "issued/cert003", []byte("nobody can read this"))
			eventually(t, 20*time.Second, "the leader has seen the edits", func() bool {
				m, err := leader.Manifest(t.Context())
				return err == nil && m["cert003"].Fingerprint == "" && m["cert007"].Tag == ""
			})
			asked.Store(1)
			s, _ = f.run(cfg)
			if n := len(facts(t, s).Entries); n != 128 || asked.Load() > 1+3 {
				t.Fatalf("%d certificates after the restart, %d of them fetched again", n, asked.Load()-1)
			}
		})
	}
}
