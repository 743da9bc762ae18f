package consul

import (
	"context"
	"testing"
)

// A node that missed a generation is waited for again once nothing of it is missing: also when the order was over before it could
// acknowledge, or before it heard of it. Until then it is not.
func TestSuspectCatchesUp(t *testing.T) {
	const missed, published = 20, 100
	read := func(highest, index uint64) func(*member) {
		return func(m *member) { m.tableRead("e", highest, index); m.tableIs("e") }
	}
	ack := func(generation uint64) func(*member) {
		return func(m *member) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nothing publishes here
			_ = m.s.Ack(ctx, generation)
		}
	}
	for name, c := range map[string]struct {
		since   []func(*member)
		suspect bool
	}{
		"nothing has happened":                       {nil, true},
		"it has the tokens, its HAProxy asks nobody": {[]func(*member){read(20, 100)}, true},
		"it acknowledges":                            {[]func(*member){read(20, 100), ack(20)}, false},
		"the order is over, its HAProxy asks nobody": {[]func(*member){read(20, 100), read(0, 110)}, true},
		"it acknowledges when the order is over":     {[]func(*member){read(20, 100), read(0, 110), ack(0)}, false},
		"it was cut off, and reads what was before":  {[]func(*member){read(10, 90)}, true},
		"it was cut off until the order was over":    {[]func(*member){read(0, 110)}, false},
		"another order is there when it comes back":  {[]func(*member){read(30, 120)}, true},
		"and is acknowledged":                        {[]func(*member){read(30, 120), ack(30)}, false},
		"its tombstone is gone again":                {[]func(*member){read(0, 110), read(0, 80)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(Config{URL: "consul://127.0.0.1:1/le", Node: "a"})
			if err != nil {
				t.Fatal(err)
			}
			m := &s.member
			defer m.followTable()()
			for _, step := range append([]func(*member){read(10, 90), ack(10)}, c.since...) {
				step(m)
			}
			var late suspects
			late.add([]string{"a", "gone"}, missed, published)
			said, _ := m.wanted()
			left := late.settle(map[string]ackRecord{"a": said}, "e")
			if left["a"] != c.suspect || left["gone"] {
				t.Errorf("suspect: %v after %+v", left, said)
			}
			late.add([]string{"a"}, missed, published)
			if left = late.settle(map[string]ackRecord{"a": said}, "another term"); !left["a"] {
				t.Error("an ack of another term counts")
			}
			late = suspects{}
			late.add([]string{"a"}, missed, 0)
			if left = late.settle(map[string]ackRecord{"a": said}, "e"); left["a"] != (said.Generation < missed) {
				t.Errorf("with no index known: %v after %+v", left, said)
			}
		})
	}
}
