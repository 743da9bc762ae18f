package dataplane

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestRealSetCutOff: HAProxy has taken a `set` whose answer nobody waits for any more. No transaction stays open, which would
// keep all others out.
func TestRealSetCutOff(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		s, c := withList(t, version)
		s.start()
		direct := s.open()
		deploy(t, direct, "shop", c.issue(t, leaf{names: []string{"shop.example"}, age: time.Hour}))
		if err := direct.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for _, cut := range []struct {
			name string
			now  func()
			want error
		}{
			{"no answer in time", func() { <-t.Context().Done() }, ErrDown},
			{"cancelled", cancel, context.Canceled},
		} {
			socket := faulty(t, s.socket, func(command string, answer []byte) []byte {
				if strings.Contains(command, "set ssl cert") {
					if !strings.Contains(string(answer), "Transaction created") {
						t.Errorf("%s: HAProxy has not taken it: %s", cut.name, answer)
					}
					cut.now()
				}
				return answer
			})
			h := s.open(func(c *Config) { c.Socket, c.timing.command = socket, 500*time.Millisecond })
			_, err := h.Deploy(ctx, Unit{Name: "shop", Bundle: c.issue(t, leaf{names: []string{"shop.example"}})})
			if !errors.Is(err, cut.want) {
				t.Errorf("%s: %v", cut.name, err)
			}
			if open := s.cli("show ssl cert"); strings.Contains(open, "# transaction") {
				t.Errorf("%s: a transaction is open:\n%s", cut.name, open)
				s.cli("abort ssl cert " + s.crtDir + "/shop.pem")
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
