package spoa

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestTableZeroValue(t *testing.T) {
	var tab Table
	if _, ok := tab.Lookup(token); ok || tab.Len() != 0 || tab.Generation() != 0 {
		t.Error("zero table is not empty")
	}
	tab.Withdraw("nothing")
}

func TestTablePublishAndWithdraw(t *testing.T) {
	var tab Table
	publish := func(order string, gen uint64, names ...string) {
		t.Helper()
		m := map[string]string{}
		for _, n := range names {
			m[n] = n + ".thumb"
		}
		if err := tab.Publish(order, gen, m); err != nil {
			t.Fatal(err)
		}
	}
	want := func(gen uint64, names ...string) {
		t.Helper()
		if tab.Len() != len(names) || tab.Generation() != gen {
			t.Errorf("%d tokens of generation %d, want %d of %d", tab.Len(), tab.Generation(), len(names), gen)
		}
		for _, n := range names {
			if got, ok := tab.Lookup(n); !ok || got != n+".thumb" {
				t.Errorf("Lookup(%s) = %q, %v", n, got, ok)
			}
		}
	}
	publish("one", 1, "a", "b")
	publish("two", 3, "b", "c")
	want(3, "a", "b", "c")
	publish("one", 2, "a", "d") // replaces, and the generation stays the highest
	want(3, "a", "b", "c", "d")
	publish("one", 4, "b")
	tab.Withdraw("two") // b is still order one's
	want(4, "b")
	if err := tab.Replace(2, map[string]map[string]string{"three": {"e": "e.thumb"}}); err != nil {
		t.Fatal(err)
	}
	want(2, "e")
}

func TestTableKeepsItsOwnCopy(t *testing.T) {
	var tab Table
	m := map[string]string{"a": "a.thumb"}
	if err := tab.Publish("one", 1, m); err != nil {
		t.Fatal(err)
	}
	m["b"] = "b.thumb"
	tab.Withdraw("other")
	if _, ok := tab.Lookup("b"); ok {
		t.Error("the caller's map is in the table")
	}
}

func TestTableRefusesMalformed(t *testing.T) {
	long := strings.Repeat("a", maxName+1)
	for _, c := range []struct{ name, token, keyAuth string }{
		{"empty token", "", ".thumb"},
		{"long token", long, long + ".thumb"},
		{"slash", "a/b", "a/b.thumb"},
		{"dots", "..", "...thumb"},
		{"newline", "a\n", "a\n.thumb"},
		{"no thumbprint", "a", "a."},
		{"no dot", "a", "a"},
		{"of another token", "a", "b.thumb"},
		{"thumbprint with newline", "a", "a.thumb\n"},
		{"long thumbprint", "a", "a." + long},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := table(t)
			bad := map[string]string{c.token: c.keyAuth, "good": "good.thumb"}
			if err := tab.Publish("bad", 2, bad); err == nil {
				t.Error("Publish took it")
			}
			if tab.Len() != 1 || tab.Generation() != 1 {
				t.Error("a refused Publish changed the table")
			}
			err := tab.Replace(2, map[string]map[string]string{"bad": bad})
			if err == nil || len(err.Error()) > 400 {
				t.Errorf("Replace: %v", err)
			}
			if _, ok := tab.Lookup("good"); !ok || tab.Len() != 1 {
				t.Error("Replace did not take the good one alone")
			}
		})
	}
}

// Readers that run beside a writer see whole states only: a token's two
// neighbours come and go with it.
func TestTableReadersSeeWholeStates(t *testing.T) {
	var tab Table
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c := tab.now.Load(); c != nil && len(c.flat)%2 != 0 {
					t.Error("half an order is visible")
					return
				}
				tab.Lookup("a1")
			}
		})
	}
	for i := range 500 {
		order := fmt.Sprint(i % 7)
		a, b := "a"+order, "b"+order
		if err := tab.Publish(order, uint64(i), map[string]string{a: a + ".t", b: b + ".t"}); err != nil {
			t.Error(err)
		}
		tab.Withdraw(fmt.Sprint((i + 3) % 7))
	}
	close(stop)
	wg.Wait()
}

func BenchmarkLookup(b *testing.B) {
	var tab Table
	for o := range 200 {
		m := map[string]string{}
		for n := range 10 {
			tok := fmt.Sprintf("token-%d-%d", o, n)
			m[tok] = tok + ".thumb"
		}
		if err := tab.Publish(fmt.Sprint(o), uint64(o), m); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := tab.Lookup("token-100-5"); !ok {
				b.Error("token is not there")
			}
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	var tab Table
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tok := fmt.Sprintf("token-%d", i%200)
		if err := tab.Publish(tok, uint64(i), map[string]string{tok: tok + ".thumb"}); err != nil {
			b.Fatal(err)
		}
	}
}
