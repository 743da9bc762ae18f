package consul

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// reading is what Consul says to one read.
type reading struct {
	after time.Duration
	value string // empty: it fails
	index uint64
}

// A restore ends a blocking read early, with what was there before; what is there now is then read at once. A read that
// ends because its time is over is not one.
func TestWatchNoticesRestore(t *testing.T) {
	for name, c := range map[string]struct {
		answers []reading
		asked   []uint64
		seen    []string
	}{
		"restored": {
			[]reading{{0, "new", 20}, {30 * time.Second, "new", 20}, {0, "old", 10}, {waitTime, "old", 10}},
			[]uint64{0, 20, 0, 10}, []string{"new", "new", "old", "old"},
		},
		"quiet": {
			[]reading{{0, "new", 20}, {waitTime + time.Second, "new", 20}, {waitTime, "new", 20}},
			[]uint64{0, 20, 20}, []string{"new", "new", "new"},
		},
		"restored on other servers": {
			[]reading{{0, "new", 20}, {0, "", 0}, {0, "old", 10}, {waitTime, "old", 10}},
			[]uint64{0, 20, 0, 10}, []string{"new", "old", "old"},
		},
		"changed": {
			[]reading{{0, "a", 20}, {time.Second, "b", 21}, {time.Second, "b", 19}, {0, "c", 19}},
			[]uint64{0, 20, 21, 0}, []string{"a", "b", "b", "c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var asked []uint64
				var seen []string
				last := ""
				calls := &client{log: slog.New(slog.DiscardHandler), metrics: newMetrics(), jitter: func(time.Duration) time.Duration { return 0 }}
				watch(ctx, calls, "it", func(_ context.Context, index uint64) (string, uint64, error) {
					a := c.answers[len(asked)]
					asked = append(asked, index)
					sleep(ctx, a.after)
					if a.value == "" {
						return "", 0, errors.New("no cluster leader")
					}
					return a.value, a.index, nil
				}, func(v string) bool {
					if seen = append(seen, v); len(seen) == len(c.seen) {
						cancel()
					}
					news := v != last
					last = v
					return news
				})
				if !slices.Equal(asked, c.asked) || !slices.Equal(seen, c.seen) {
					t.Errorf("asked after %v, want %v; seen %v, want %v", asked, c.asked, seen, c.seen)
				}
			})
		})
	}
}
