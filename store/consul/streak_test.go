package consul

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

// TestStreak: of a Consul that is gone, of what its absence brings with it, and of what is wrong besides, each is said once.
func TestStreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, nil))
		c := &client{log: log, contact: contact{log: log}}
		demand := func(what string, want ...string) {
			t.Helper()
			got := strings.Count(b.String(), "\n")
			for _, w := range want {
				if !strings.Contains(b.String(), w) {
					got = -1
				}
			}
			if got != len(want) {
				t.Errorf("%s: logged\n%s\nwant %q", what, &b, want)
			}
			b.Reset()
		}
		gone := unreached{errors.New("refused")}
		s := streak{c: c}
		for range 30 {
			c.contact.note(gone)
			s.failed("not in the fleet", gone)
			time.Sleep(time.Second)
		}
		demand("gone", "out of reach")
		c.contact.note(nil)
		s.failed("not in the fleet", errGone)
		time.Sleep(time.Second)
		s.over("in the fleet again")
		demand("back", "answers again\" after=30s")

		for range 30 { // one call alone fails
			c.contact.note(nil)
			s.failed("can't watch", gone)
			time.Sleep(time.Second)
		}
		s.over("watching again")
		demand("one alone", "level=WARN msg=\"can't watch", "watching again\" after=30s")
		for range 3 {
			s.failed("not in the fleet", ErrDuplicate)
		}
		s.over("in the fleet")
		demand("a fault of its own", "level=WARN msg=\"not in the fleet", "in the fleet\" after=0s")
		s.failed("not in the fleet", fmt.Errorf("%w: %w", errGone, errStuck))
		demand("what nothing follows", "level=WARN")
	})
}
