package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Hooks is what the suite needs help with, because only the store's own package can do it.
type Hooks struct {
	// Edit changes what is stored under a key as a foreigner would, past the Store: nil deletes.
	Edit func(t *testing.T, s store.Store, key store.Key, data []byte)
	// EndLease ends the lease that is held, as a lost session would.
	EndLease func(t *testing.T, s store.Store)
}

// Run checks that a store keeps the contract of store.Store. open returns an empty store and closes it by
// t.Cleanup. The store's Barrier waits for the very process.
func Run(t *testing.T, open func(t *testing.T) store.Store, hooks Hooks) {
	t.Helper()
	for name, test := range map[string]func(*suite){
		"every kind":                    testKinds,
		"list":                          testList,
		"records are copies":            testCopies,
		"revisions":                     testRevisions,
		"preconditions":                 testPreconditions,
		"refused leaves everything":     testAllOrNothing,
		"bad commits":                   testBadCommits,
		"limits":                        testLimits,
		"compare and swap":              testCompareAndSwap,
		"commits are atomic":            testAtomic,
		"ended context":                 testEndedContext,
		"lease is needed":               testLeaseNeeded,
		"released lease":                testReleased,
		"lost lease":                    testLost,
		"foreign lease":                 testForeignLease,
		"one leader":                    testOneLeader,
		"follow":                        testFollow,
		"follow foreign edits":          testFollowEdits,
		"follow loses nothing":          testFollowAll,
		"follow ends":                   testFollowEnds,
		"barrier":                       testBarrier,
		"unreadable":                    testUnreadable,
		"unreadable is replaced":        testUnreadableReplaced,
		"unknown fields survive":        testUnknownFields,
		"foreign edits are read":        testEditsAreRead,
		"foreign edits change revision": testEditRevisions,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(&suite{T: t, Store: open(t), hooks: hooks})
		})
	}
}

// suite is one test with its store.
type suite struct {
	*testing.T
	store.Store
	hooks Hooks
}

// patience is how long anything may take.
const patience = 20 * time.Second

func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) lead() store.Lease {
	s.Helper()
	l, err := s.Lead(s.ctx())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(l.Release)
	return l
}

func (s *suite) commit(lease store.Lease, pre []store.Precondition, ops ...store.Op) {
	s.Helper()
	if err := s.Commit(s.ctx(), lease, pre, ops); err != nil {
		s.Fatal(err)
	}
}

// refused demands that a commit is refused, for a reason that contains words.
func (s *suite) refused(words string, lease store.Lease, pre []store.Precondition, ops ...store.Op) error {
	s.Helper()
	err := s.Commit(s.ctx(), lease, pre, ops)
	if !errors.Is(err, store.ErrRefused) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), words) {
		s.Errorf("%v, want it refused because of %q", err, words)
	}
	return err
}

func (s *suite) get(key store.Key) store.Entry {
	s.Helper()
	e, err := s.Get(s.ctx(), key)
	if err != nil {
		s.Fatal(err)
	}
	if e.Key != key || e.Record.Key() != key || e.Revision == "" {
		s.Errorf("asked for %s, got %s, %s at %q", key, e.Key, e.Record.Key(), e.Revision)
	}
	return e
}

func (s *suite) absent(key store.Key) {
	s.Helper()
	if e, err := s.Get(s.ctx(), key); !errors.Is(err, store.ErrAbsent) || e.Record != nil || e.Revision != "" {
		s.Errorf("%s: %v, want it absent", key, err)
	} else if !strings.Contains(err.Error(), key.String()) {
		s.Errorf("the error %q does not name %s", err, key)
	}
}

func (s *suite) list(kind store.Kind) store.Listing {
	s.Helper()
	l, err := s.List(s.ctx(), kind)
	if err != nil {
		s.Fatal(err)
	}
	return l
}

// eventually waits for a condition.
func (s *suite) eventually(what string, ok func() bool) {
	s.Helper()
	ctx, tick := s.ctx(), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			s.Fatalf("not so after %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// demand is a record for everybody to write, budget one for the leader; n tells versions apart.
func demand(node string, n int) *store.Demand {
	return &store.Demand{Node: node, Since: time.Unix(1_800_000_000+int64(n), 0).UTC()}
}

func budget(ca string, n int) *store.Budget {
	return &store.Budget{CA: ca, Error: fmt.Sprint(n)}
}

func at(key store.Key, revision store.Revision) []store.Precondition {
	return []store.Precondition{{Key: key, Revision: revision}}
}

func demandKey(node string) store.Key { return store.Key{Kind: store.KindDemand, Name: node} }
func budgetKey(ca string) store.Key   { return store.Key{Kind: store.KindBudget, Name: ca} }
