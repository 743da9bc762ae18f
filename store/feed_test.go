package store_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/spoacme/spoacme/store"
)

func TestFeedMergesAndGivesUpCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var feed store.Feed
		var told [][]store.Key
		hold, result := make(chan bool), make(chan error)
		go func() {
			result <- feed.Follow(t.Context(), func(keys []store.Key) { told = append(told, keys); <-hold }, store.KindDemand)
		}()
		synctest.Wait()
		key := func(i int) store.Key { return store.Key{Kind: store.KindDemand, Name: fmt.Sprint(i)} }
		feed.Announce(key(2), key(1), store.Key{Kind: store.KindBudget, Name: "x"})
		feed.Announce(key(1))
		hold <- true
		synctest.Wait()
		for i := range 10_001 {
			feed.Announce(key(i))
		}
		hold <- true
		synctest.Wait()
		feed.Announce()
		feed.Announce(key(1))
		hold <- true
		synctest.Wait()
		feed.Announce(store.Key{Kind: store.KindBudget, Name: "x"})
		hold <- true
		synctest.Wait()
		feed.Close()
		feed.Announce(key(1))
		if err := <-result; err == nil {
			t.Error("it ended without an error")
		}
		if got := fmt.Sprint(told); got != "[[] [demand/1 demand/2] [] []]" || told[2] != nil {
			t.Error(got)
		}
	})
}

// A follower that is told of everything reads everything: that must not come of changes that follow each other closely.
func TestFeedTellsOfEverythingOnlyOnce(t *testing.T) {
	var feed store.Feed
	const changes = 20_000
	last := store.Key{Kind: store.KindDemand, Name: "last"}
	started, ended := make(chan struct{}), make(chan error, 1)
	everything := 0
	go func() {
		ended <- feed.Follow(t.Context(), func(keys []store.Key) {
			if keys == nil {
				if everything++; everything == 1 {
					close(started)
				}
			}
			if slices.Contains(keys, last) {
				feed.Close()
			}
		})
	}()
	<-started
	for i := range changes {
		feed.Announce(store.Key{Kind: store.KindDemand, Name: fmt.Sprint(i % 100)})
	}
	feed.Announce(last)
	<-ended
	if everything != 1 {
		t.Errorf("told of everything %d times in %d changes", everything, changes)
	}
}
