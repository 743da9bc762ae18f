package integration

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// A certificate put into the empty crt-list at run time is served, and no client notices that it is swapped later.
func TestSwapUnderLoad(t *testing.T) {
	const name = "shop.example.com"
	eachVersion(t, func(t *testing.T, version string) {
		h := fixture.StartHAProxy(t, fixture.HAProxyOptions{Version: version})
		file := strings.TrimSuffix(h.CrtList(), "crt-list") + "shop.pem"
		command(t, h, "new ssl cert "+file, "New empty certificate store")
		swap(t, h, file, name)
		command(t, h, "add ssl crt-list "+h.CrtList()+" "+file, "Success!")
		first := serving(t, h, name).Serial
		worker := pid(t, h)

		load := fixture.StartLoad(fixture.LoadOptions{Addr: h.HTTPS.Addr(), Name: name, New: 3, KeepAlive: 3})
		awaitRequests(t, load, 100)
		swap(t, h, file, name)
		swapped := time.Now()
		awaitRequests(t, load, load.Report().Requests+100)
		report := load.Stop()

		if report.Failed != 0 {
			t.Errorf("%d of %d requests failed: %v", report.Failed, report.Requests, report.Errors)
		}
		if len(report.Serials) != 2 || report.Serials[0].Serial != first {
			t.Errorf("served: %+v, want %s and another one", report.Serials, first)
		}
		if old := report.Serials[0]; old.Last.After(swapped) {
			t.Errorf("the old certificate was served %v after the swap", old.Last.Sub(swapped))
		}
		if got := pid(t, h); got != worker {
			t.Errorf("pid %d, was %d", got, worker)
		}
	})
}

var errNotYet = errors.New("not yet")

func command(t *testing.T, h *fixture.HAProxy, line, want string) {
	t.Helper()
	answer, err := h.Command(line)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(answer, want) {
		word, _, _ := strings.Cut(line, "<<")
		t.Fatalf("%s: %q, want %q", word, answer, want)
	}
}

// swap replaces the certificate that HAProxy has in memory by a new self-signed one.
func swap(t *testing.T, h *fixture.HAProxy, file, name string) {
	t.Helper()
	bundle, err := fixture.SelfSigned(name)
	if err != nil {
		t.Fatal(err)
	}
	command(t, h, "set ssl cert "+file+" <<\n"+string(bundle), "Transaction created")
	command(t, h, "commit ssl cert "+file, "Success!")
}

func awaitRequests(t *testing.T, load *fixture.Load, n int) {
	t.Helper()
	err := fixture.Await(t.Context(), 20*time.Second, func() error {
		if got := load.Report(); got.Requests < n && got.Failed == 0 {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%d requests: %v", n, err)
	}
}
