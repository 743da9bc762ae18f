package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/issuer"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// How far a request has come is told by the leader's clock alone, and who asks for what is there is told so.
func TestProgress(t *testing.T) {
	const le = "https://acme-v02.api.letsencrypt.org/directory"
	now := time.Now().UTC()
	issued := func(at time.Time) *store.Certificate {
		c := storetest.Records("shop")[1].(*store.Certificate)
		c.IssuedAt, c.NotBefore, c.NotAfter, c.RenewAt = at, at, at.AddDate(0, 0, 90), at.AddDate(0, 0, 60)
		return c
	}
	often := issued(now.Add(-time.Hour))
	for i := range 3 {
		often.Before = append(often.Before, now.Add(time.Duration(i-5)*time.Hour))
	}
	wanted := storetest.Records("shop")[0].(*store.Wanted)
	asked := *wanted
	asked.RenewAsked = now
	failed := &store.Attempt{Name: "shop", CA: le, Failures: 1, Tried: now.Add(time.Second), Next: now.Add(time.Hour), Error: "no address"}
	old := *failed
	old.Tried = now.Add(-time.Minute)
	names := wanted.Spec.Domains
	const issue, renew = store.RequestIssue, store.RequestRenew
	for name, c := range map[string]struct {
		op     string
		names  []string
		skew   time.Duration // of the node's clock before the leader's
		stored []store.Record
		step   string
		error  string
	}{
		"the same words again":               {op: issue, names: names, stored: []store.Record{wanted, issued(now.Add(-time.Hour))}, step: "served by HAProxy"},
		"fewer names":                        {op: issue, names: names[:1], stored: []store.Record{wanted, issued(now.Add(-time.Hour))}, step: "served by HAProxy"},
		"a name more":                        {op: issue, names: append([]string{"new.example.com"}, names...), stored: []store.Record{wanted, issued(now.Add(-time.Hour))}, step: "placing the order"},
		"one that is due":                    {op: issue, names: names, stored: []store.Record{wanted, issued(now.AddDate(0, 0, -61))}, step: "placing the order"},
		"one that is asked to be renewed":    {op: issue, names: names, stored: []store.Record{&asked, issued(now.Add(-time.Hour))}, step: "placing the order"},
		"a renewal":                          {op: renew, stored: []store.Record{&asked, issued(now.Add(-time.Hour))}, step: "placing the order"},
		"renewed":                            {op: renew, stored: []store.Record{&asked, issued(now)}, step: "served by HAProxy"},
		"renewed, the node's clock is ahead": {op: renew, skew: time.Hour, stored: []store.Record{&asked, issued(now.Add(time.Second))}, step: "served by HAProxy"},
		"to be renewed, and it is behind":    {op: renew, skew: -2 * time.Hour, stored: []store.Record{&asked, issued(now.Add(-time.Hour))}, step: "placing the order"},
		"failed, the node's clock is ahead":  {op: renew, skew: time.Hour, stored: []store.Record{&asked, issued(now.Add(-time.Hour)), failed}, step: "failed", error: "no address"},
		"failed before, and it is behind":    {op: renew, skew: -time.Hour, stored: []store.Record{&asked, issued(now.Add(-time.Hour)), &old}, step: "held back until"},
		"the CA's limit on the same names":   {op: renew, stored: []store.Record{&asked, often}, step: "waiting until " + often.Before[0].AddDate(0, 0, 7).Local().Format(time.DateTime) + ", because of the CA's limit on certificates for the same names"},
		"the CA's pause":                     {op: renew, stored: []store.Record{&asked, often, &store.Budget{CA: issuer.CAID(le), Until: now.Add(time.Hour), Error: "too many"}}, step: "waiting until " + now.Add(time.Hour).Local().Format(time.DateTime) + ", which the CA demands"},
	} {
		t.Run(name, func(t *testing.T) {
			st := storetest.NewMemory()
			lease, err := st.Lead(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var ops []store.Op
			view := status.View{Certificates: []status.CertificateView{{Name: "shop"}}}
			for _, r := range c.stored {
				ops = append(ops, store.Put(r))
				if r, ok := r.(*store.Certificate); ok {
					view.Certificates[0].Served = &status.Served{Fingerprint: r.Fingerprint}
				}
			}
			if err := st.Commit(t.Context(), lease, nil, ops); err != nil {
				t.Fatal(err)
			}
			ctl := &control{store: st, catalog: newCatalog(st, "node", slog.New(slog.DiscardHandler), func([]string) {}), view: func() status.View { return view }}
			if err := ctl.catalog.apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if ctl.issuer, err = issuer.New(issuer.Config{Store: st, Settings: issuer.Settings{CAs: []issuer.CA{{Directory: le}}}}); err != nil {
				t.Fatal(err)
			}
			p := ctl.progress(t.Context(), &store.Request{ID: "x", Op: c.op, Certificate: "shop", Spec: store.Spec{Domains: c.names}, Asked: now.Add(c.skew), Done: now})
			done := c.step == "served by HAProxy" || c.error != ""
			if !strings.HasPrefix(p.Step, c.step) || p.Done != done || !strings.Contains(p.Error, c.error) {
				t.Errorf("%+v, want %q", p, c.step)
			}
		})
	}
}
