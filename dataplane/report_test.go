package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// logged returns a HAProxy whose lines are the levels and messages of its log.
func logged() (h *HAProxy, lines func() []string) {
	var b bytes.Buffer
	h = &HAProxy{states: map[string]*State{}, swaps: map[string]time.Time{}, timing: timing{}.withDefaults()}
	h.log = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key != slog.LevelKey && a.Key != slog.MessageKey && a.Key != "after" {
			return slog.Attr{}
		}
		return a
	}}))
	return h, func() []string {
		defer b.Reset()
		return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	}
}

func demandLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("logged\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTroubleIsLoggedOnce(t *testing.T) {
	const lost, again = `level=ERROR msg="HAProxy can't be kept up to date"`, `level=INFO msg="HAProxy is kept up to date again" after=`
	synctest.Test(t, func(t *testing.T) {
		h, lines := logged()
		for i := range 60 { // restarted: one thing after the other fails
			h.setErr(fmt.Errorf("command %d: %w", i%3, ErrDown))
			time.Sleep(time.Second)
		}
		h.setErr(nil)
		demandLines(t, lines(), lost, again+"1m0s")

		unread := fmt.Errorf("%w: the store was not read yet", errSource)
		for range 5 {
			h.setErr(unread)
			time.Sleep(time.Second)
		}
		h.setErr(nil)
		demandLines(t, lines(), "")
		for range 30 {
			h.setErr(unread)
			time.Sleep(time.Second)
		}
		h.setErr(errors.New("no crt-list"))
		h.setErr(nil)
		demandLines(t, lines(), lost, lost, again+"30s")
	})
}

func TestWhatPassesIsNoErrorAtOnce(t *testing.T) {
	const warn, bad = `level=WARN msg="certificate is not deployed yet, trying again"`, `level=ERROR msg="certificate is not deployed"`
	synctest.Test(t, func(t *testing.T) {
		h, lines := logged()
		locked := &job{name: "shop", err: fmt.Errorf("swap: %w", &refusal{"Operations on certificates are currently locked!"})}
		for range 5 {
			h.record(locked)
			time.Sleep(time.Second)
		}
		h.record(&job{name: "shop"})
		demandLines(t, lines(), warn)
		for range 60 {
			h.record(locked)
			time.Sleep(time.Second)
		}
		demandLines(t, lines(), warn, bad)
		if s := h.states["shop"]; s.Err == nil || time.Until(s.retry) > time.Second {
			t.Errorf("tried again at %v: %v", s.retry, s.Err)
		}
	})
}
