package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/file"
	"github.com/spoacme/spoacme/store/storetest"
)

// maxPicture is how large the picture of the documentation may be, in bytes.
const maxPicture = 150 << 10

// Several certificates in different states at once. With UPDATE_PICTURE=1 the picture in haproxy-conf is taken anew.
func TestStatisticsPicture(t *testing.T) {
	certificates := map[string]struct {
		left   time.Duration // of 90 days; 0: none is stored
		broken bool          // its name does not lead here
		state  status.State
		shows  string
		weight string
	}{
		"blog":  {61 * 24 * time.Hour, false, status.OK, " UP", "68/68"},
		"intra": {9 * 24 * time.Hour, true, status.Failing, "DRAIN", ""},
		"new":   {0, true, status.Missing, "DOWN", ""},
		"old":   {-30 * time.Hour, true, status.Expired, "DOWN", ""},
		"shop":  {0, false, status.OK, " UP", "100/100"},
	}
	w := startWorld(t, worldOptions{late: true, haproxy: fixture.HAProxyOptions{Version: "3.2"}})
	ca := storetest.NewCA(t, "Example")
	var names []string
	var stored []store.Op
	for name, c := range certificates {
		domain := name + ".example.com"
		names = append(names, name)
		w.set("SPOACME_CERT_"+name, domain)
		if c.broken {
			if err := w.pebble.SetDNS(t.Context(), domain); err != nil {
				t.Fatal(err)
			}
		}
		if c.state != status.OK {
			w.states[name] = c.state
		}
		if c.left != 0 {
			end := time.Now().Add(c.left)
			stored = append(stored, store.Put(ca.Certificate(name, storetest.Leaf{
				Domains: []string{domain}, NotBefore: end.AddDate(0, 0, -90), NotAfter: end,
			})))
		}
	}
	w.set("SPOACME_CERTS", strings.Join(names, ","), "SPOACME_PROBE", w.haproxy.HTTPS.Addr())
	w.restart()
	w.prefill(stored)
	w.runSidecar()
	for name, c := range certificates {
		w.certificate(name, c.state)
	}

	page := openPage(t, w.haproxy)
	for name, c := range certificates {
		pageShows(t, page, name, c.shows, func(row pageRow) bool {
			calm := row.Class == "active_up" || row.Class == "active_down"
			return calm && strings.Contains(row.Status, c.shows) && (c.weight == "" || row.Weight == c.weight)
		})
	}
	if os.Getenv("UPDATE_PICTURE") != "" {
		w.picture(page, filepath.Join(fixture.Root(), "haproxy-conf", "statistics.png"))
	}
}

// prefill puts records into the store of a sidecar that does not run yet.
func (w *world) prefill(ops []store.Op) {
	w.t.Helper()
	st, err := file.Open(filepath.Join(filepath.Dir(w.haproxy.ConfigDir()), "store"), file.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	lease, err := st.Lead(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := st.Commit(w.t.Context(), lease, nil, ops); err != nil {
		w.t.Error(err)
	}
	lease.Release()
	if err := st.Close(); err != nil {
		w.t.Error(err)
	}
}

// picture writes what the page shows of the backends that matter.
func (w *world) picture(page context.Context, path string) {
	w.t.Helper()
	const onlyOurs = `
		for (const title of document.querySelectorAll('th.pxname')) {
			const name = title.querySelector('a').name, head = title.closest('table'), rows = head.nextElementSibling;
			if (name !== 'acme_agent' && name !== 'certificates') { head.remove(); rows.remove(); }
		}
		for (const p of document.querySelectorAll('body > p')) { if (!p.textContent.trim()) p.remove(); }`
	if _, err := chromedp.Run(page, chromedp.Evaluate[chromedp.Void](onlyOurs)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := chromedp.Run(page, chromedp.EmulateViewport(1500, 460)); err != nil {
		w.t.Fatal(err)
	}
	png, err := chromedp.Run(page, chromedp.CaptureScreenshot())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(png) > maxPicture {
		w.t.Fatalf("the picture has %d bytes, more than %d", len(png), maxPicture)
	}
	if err := os.WriteFile(path, png, 0o644); err != nil {
		w.t.Fatal(err)
	}
}
