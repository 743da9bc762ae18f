package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/spoacme/spoacme/store"
)

func testPreconditions(s *suite) {
	a, b := demandKey("a"), demandKey("b")
	s.refused(a.String(), nil, at(a, "1"), store.Put(demand("a", 1)))
	s.commit(nil, at(a, ""), store.Put(demand("a", 1)))
	s.refused(a.String(), nil, at(a, ""), store.Put(demand("a", 2)))
	first := s.get(a).Revision
	s.commit(nil, at(a, first), store.Put(demand("a", 2)))
	s.refused(a.String(), nil, at(a, first), store.Put(demand("a", 3)))
	second := s.get(a).Revision

	// On a key that is not written.
	s.refused(a.String(), nil, at(a, first), store.Put(demand("b", 1)))
	s.commit(nil, at(a, second), store.Put(demand("b", 1)))
	s.refused(b.String(), nil, append(at(a, second), at(b, "")...), store.Put(demand("c", 1)))

	// With nothing to write.
	s.commit(nil, append(at(a, second), at(demandKey("c"), "")...))
	s.refused(a.String(), nil, at(a, first))

	// With a delete.
	s.refused(a.String(), nil, at(a, first), store.Delete(a))
	s.commit(nil, at(a, second), store.Delete(a))
	s.absent(a)
	s.refused(a.String(), nil, at(a, second))
}

func testAllOrNothing(s *suite) {
	lease := s.lead()
	s.commit(lease, nil, store.Put(demand("a", 1)), store.Put(budget("x", 1)))
	s.refused("", lease, at(demandKey("a"), ""), store.Put(demand("b", 2)), store.Put(budget("x", 2)), store.Delete(demandKey("a")))
	s.refused("", lease, nil, store.Put(demand("b", 2)), store.Put(budget("x", 2)), store.Put(&store.Demand{Node: "n"}))
	s.absent(demandKey("b"))
	s.get(demandKey("a"))
	if got := s.get(budgetKey("x")).Record.(*store.Budget).Error; got != "1" {
		s.Errorf("a part of a refused commit was written: %s", got)
	}
}

func testBadCommits(s *suite) {
	s.refused("demand/n", nil, nil, store.Put(&store.Demand{Node: "n"}))
	s.refused("use 1 to 64", nil, nil, store.Put(demand("../n", 1)))
	s.refused("use 1 to 64", nil, nil, store.Delete(demandKey("")))
	s.refused("unknown kind", nil, nil, store.Delete(store.Key{Kind: "odd", Name: "x"}))
	s.refused("written twice", nil, nil, store.Put(demand("n", 1)), store.Delete(demandKey("n")))
	s.refused("the record says that it is demand/n", nil, nil, store.Op{Key: demandKey("m"), Record: demand("n", 1)})
	s.refused("unknown kind", nil, []store.Precondition{{Key: store.Key{Kind: "odd", Name: "x"}}}, store.Put(demand("n", 1)))
	s.absent(demandKey("n"))
}

func testLimits(s *suite) {
	ops := make([]store.Op, store.MaxOperations+1)
	for i := range ops {
		ops[i] = store.Put(demand(fmt.Sprint("n", i), i))
	}
	s.refused("61 operations, the limit is 60", nil, nil, ops...)
	s.absent(demandKey("n0"))
	s.refused("61 operations, the limit is 60", nil, at(demandKey("else"), ""), ops[1:]...)
	s.commit(nil, at(demandKey("n1"), ""), ops[1:]...)
	if n := len(s.list(store.KindDemand).Entries); n != store.MaxOperations {
		s.Errorf("%d records", n)
	}

	big := func(node string, size int) *store.Demand {
		d := demand(node, 0)
		d.Certificates = map[string]store.Spec{}
		for i := 0; size > 0; i++ {
			spec := store.Spec{CA: "https://ca.example/" + strings.Repeat("x", min(size, 8000)), Domains: []string{"a.example"}}
			d.Certificates[fmt.Sprint("c", i)] = spec
			size -= 8000
		}
		return d
	}
	s.refused("the limit is 307200", nil, nil, store.Put(big("big", store.MaxRecordBytes)))
	s.absent(demandKey("big"))
	s.commit(nil, nil, store.Put(big("big", 280<<10)))
	s.refused("the limit is 358400", nil, nil, store.Put(big("one", 180<<10)), store.Put(big("two", 180<<10)))
	s.absent(demandKey("one"))
	s.commit(nil, nil, store.Put(big("one", 160<<10)), store.Put(big("two", 160<<10)))
	s.get(demandKey("two"))
}

func testCompareAndSwap(s *suite) {
	const writers, each = 8, 10
	lease := s.lead()
	s.commit(lease, nil, store.Put(budget("sum", 0)))
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				e, err := s.Get(s.ctx(), budgetKey("sum"))
				if err != nil {
					s.Error(err)
					return
				}
				n, _ := strconv.Atoi(e.Record.(*store.Budget).Error)
				err = s.Commit(s.ctx(), lease, at(e.Key, e.Revision), []store.Op{store.Put(budget("sum", n+1))})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrRefused):
					s.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := s.get(budgetKey("sum")).Record.(*store.Budget).Error; got != fmt.Sprint(writers*each) {
		s.Errorf("%s, want %d", got, writers*each)
	}
}

// testAtomic writes three records, two of one kind, always together; no reader may see them apart.
func testAtomic(s *suite) {
	const rounds = 100
	lease := s.lead()
	write := func(n int) {
		s.commit(lease, nil, store.Put(demand("a", n)), store.Put(budget("x", n)), store.Put(demand("b", n)))
	}
	write(0)
	ctx, stop := context.WithCancel(s.ctx())
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for ctx.Err() == nil {
				list, err := s.List(s.ctx(), store.KindDemand)
				if err != nil || len(list.Entries) != 2 {
					s.Errorf("%v, %d records", err, len(list.Entries))
					return
				}
				a, b := list.Entries[0].Record.(*store.Demand), list.Entries[1].Record.(*store.Demand)
				x, err := s.Get(s.ctx(), budgetKey("x"))
				if err != nil {
					s.Error(err)
					return
				}
				n, _ := strconv.Atoi(x.Record.(*store.Budget).Error)
				if !a.Since.Equal(b.Since) || a.Since.After(demand("", n).Since) {
					s.Errorf("half of a commit: %v, %v, then %d", a.Since, b.Since, n)
				}
			}
		})
	}
	for n := range rounds {
		write(n + 1)
	}
	stop()
	readers.Wait()
}

func testEndedContext(s *suite) {
	s.commit(nil, nil, store.Put(demand("n", 1)))
	ctx, cancel := context.WithCancel(s.ctx())
	cancel()
	if err := s.Commit(ctx, nil, nil, []store.Op{store.Put(demand("n", 2))}); !errors.Is(err, store.ErrRefused) || !errors.Is(err, context.Canceled) {
		s.Errorf("commit: %v", err)
	}
	if _, err := s.Get(ctx, demandKey("n")); !errors.Is(err, context.Canceled) {
		s.Errorf("get: %v", err)
	}
	if _, err := s.List(ctx, store.KindDemand); !errors.Is(err, context.Canceled) {
		s.Errorf("list: %v", err)
	}
	if _, err := s.Lead(ctx); !errors.Is(err, context.Canceled) {
		s.Errorf("lead: %v", err)
	}
	if got := s.get(demandKey("n")); encoded(s, got.Record) != encoded(s, demand("n", 1)) {
		s.Error("it was written")
	}
}
