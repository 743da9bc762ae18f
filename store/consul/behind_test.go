package consul

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBehind looks at a node that says every five seconds what it has seen, while the feed never rests.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p past
		said := ackRecord{Epoch: "a"}
		if p.behind(said) {
			t.Error("behind before there is a feed")
		}
		for seq := uint64(1); seq <= 600; seq++ {
			p.saw("a", seq)
			if seq%50 == 0 {
				said.Seq = seq
			}
			if p.behind(said) {
				t.Fatalf("seq %d: a node that said %d is called behind", seq, said.Seq)
			}
			time.Sleep(renews / 50)
		}
		if n := len(p.seen); n > 100 {
			t.Errorf("%d changes are remembered", n)
		}

		p.saw("b", 601) // another term
		time.Sleep(ackLag - time.Millisecond)
		if p.behind(said) {
			t.Error("behind at once when a term begins")
		}
		time.Sleep(time.Millisecond)
		if !p.behind(said) {
			t.Error("a node that stays in an old term is not behind")
		}
		for _, r := range []ackRecord{{Epoch: "b", Seq: 601}, {Epoch: "c", Seq: 602}} {
			if p.behind(r) {
				t.Errorf("%s %d is called behind", r.Epoch, r.Seq)
			}
		}
		if !p.behind(ackRecord{}) {
			t.Error("a node that has seen nothing is not behind")
		}

		p.saw("b", 3) // a restore
		if p.behind(ackRecord{Epoch: "b", Seq: 3}) || p.behind(said) {
			t.Error("behind at once after a restore")
		}
		time.Sleep(ackLag)
		if p.behind(ackRecord{Epoch: "b", Seq: 3}) || !p.behind(ackRecord{Epoch: "b", Seq: 2}) {
			t.Error("after a restore")
		}
	})
}
