package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const agent = "127.0.0.1:9767"

// backend is HAProxy's list of servers; it refuses what HAProxy would.
type backend struct {
	mu   sync.Mutex
	rows []Present
	log  []string
	fail error
}

func (b *backend) Rows(context.Context, string) ([]Present, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return nil, b.fail
	}
	return slices.Clone(b.rows), nil
}

func (b *backend) AddRow(_ context.Context, name string, r Row) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.rows, func(p Present) bool { return p.Name == r.Name }) {
		return errors.New("already exists a server with the same name in backend")
	}
	b.rows = append(b.rows, Present{r.Name, r.Agent, r.Probe != ""})
	b.log = append(b.log, fmt.Sprintf("add %s/%s %s %d %s probe=%s sni=%s", name, r.Name, r.Words, r.Weight, r.Send, r.Probe, r.SNI))
	return nil
}

func (b *backend) DelRow(_ context.Context, name, row string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = slices.DeleteFunc(b.rows, func(p Present) bool { return p.Name == row })
	b.log = append(b.log, "del "+name+"/"+row)
	return nil
}

func (b *backend) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.log
	b.log = nil
	return log
}

func (b *backend) restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = nil
}

func TestRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var view atomic.Pointer[View]
		set := func(v View) { view.Store(&v) }
		set(Build(one(func(in *Input) { in.Wanted = append(in.Wanted, wanted("new")) })))
		b := &backend{rows: []Present{
			{"stale", agent, false},             // of a certificate that is gone
			{"shop", "127.0.0.1:1", false},      // of a sidecar that had another port
			{"site", "", false},                 // of the site
			{"checked", "192.0.2.1:999", false}, // of the site, with an agent check of its own
		}}
		poke := make(chan struct{})
		r := &Rows{HAProxy: b, Backend: "certificates", View: func() View { return *view.Load() }, Agent: agent, Probe: "127.0.0.1:443", Poke: poke}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		expect := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got := b.take(); !slices.Equal(got, want) {
				t.Errorf("%s:\n got %q\nwant %q", what, got, want)
			}
		}
		addNew := "add certificates/new down 0 new| probe= sni="
		addShop := "add certificates/shop ready up 60 shop| probe=127.0.0.1:443 sni=shop.example.com"
		expect("start", "del certificates/stale", "del certificates/shop", addNew, addShop)
		<-time.After(6 * time.Second)
		expect("nothing changed")
		b.restart()
		poke <- struct{}{}
		expect("a new process", addNew, addShop)
		b.restart()
		<-time.After(6 * time.Second)
		expect("a new process that nobody told us of", addNew, addShop)
		set(Build(one(func(in *Input) {
			in.Wanted, in.Issued = append(in.Wanted, wanted("new")), append(in.Issued, issued("new", 54))
		})))
		<-time.After(6 * time.Second)
		expect("a row can be probed now", "del certificates/new", "add certificates/new down 0 new| probe=127.0.0.1:443 sni=new.example.com")
		set(Build(one(func(*Input) {})))
		<-time.After(6 * time.Second)
		expect("a certificate less", "del certificates/new")
		set(View{Loading: true, HAProxy: HAProxy{Reachable: true}})
		<-time.After(6 * time.Second)
		expect("the store is not read yet")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A server of the site keeps its place, whatever its name.
func TestRowsLeaveOthersAlone(t *testing.T) {
	view := Build(one(func(*Input) {}))
	b := &backend{rows: []Present{{"shop", "", false}}}
	r := &Rows{HAProxy: b, Backend: "web", View: func() View { return view }, Agent: agent}
	err := r.once(t.Context())
	if err == nil || err.Error() != "backend web has a server shop of its own: rename it" || len(b.take()) > 0 {
		t.Errorf("%v", err)
	}
}

// What HAProxy refuses is said once.
func TestRowsSayOnce(t *testing.T) {
	var log bytes.Buffer
	b := &backend{fail: errors.New("HAProxy 2.2 can't add servers")}
	r := &Rows{HAProxy: b, Backend: "certificates", View: func() View { return Build(one(func(*Input) {})) }, Agent: agent,
		Logger: slog.New(slog.NewTextHandler(&log, nil))}
	for range 3 {
		r.say(r.once(t.Context()))
	}
	b.fail = nil
	r.say(r.once(t.Context()))
	b.fail = errors.New("gone")
	r.say(r.once(t.Context()))
	want := "list rows of backend certificates: HAProxy 2.2 can't add servers"
	if strings.Count(log.String(), "level=") != 2 || !strings.Contains(log.String(), want) {
		t.Error(log.String())
	}
}

func TestLayout(t *testing.T) {
	many := func(n, bad int) View {
		v := View{Time: now}
		for i := range n {
			c := CertificateView{Name: fmt.Sprintf("c%05d", i), State: OK, Percent: 60, Stored: &Stored{NotAfter: now.Add(54 * day)}}
			if i%(n/bad) == 0 && i/(n/bad) < bad {
				c.State = Failing
			}
			v.Certificates = append(v.Certificates, c)
		}
		v.Certificates = append(v.Certificates, CertificateView{Name: "z", State: Unwanted})
		return v
	}
	for _, c := range []struct{ n, bad, rows, rest int }{
		{1, 1, 1, 0}, {500, 2, 500, 0}, {501, 3, 3, 498}, {10000, 499, 499, 9501}, {10000, 500, 499, 9501}, {10000, 10000, 499, 9501},
	} {
		rows, rest := layout(many(c.n, c.bad))
		if len(rows) != c.rows || len(rest) != c.rest {
			t.Errorf("%d certificates, %d bad: %d rows, %d counted", c.n, c.bad, len(rows), len(rest))
		}
	}
	r := &Rows{Agent: agent}
	got := r.wanted(many(501, 1))
	want := []Row{
		{Name: "c00000", Agent: agent, Send: "c00000|", Words: "up drain", Weight: 60},
		{Name: "_others", Agent: agent, Send: "_others|", Words: "ready up", Weight: 60},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}
