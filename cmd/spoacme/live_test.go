package main

import (
	"slices"
	"testing"

	"github.com/spoacme/spoacme/settings"
)

// A fleet's store knows the CAs from its beginning: with others everything begins anew. A single node changes them while it runs.
func TestCAsOfAFleetAreStructural(t *testing.T) {
	for store, want := range map[string]bool{"consul://127.0.0.1:8500/le": true, "file:///var/lib/spoacme": false} {
		before := settings.Settings{Store: store, CAs: []string{"https://one.example/dir"}}
		after := before
		after.CAs = []string{"https://one.example/dir", "https://two.example/dir"}
		if anew := !slices.Equal(structural(before), structural(after)); anew != want {
			t.Errorf("%s: begins anew: %v, want %v", store, anew, want)
		}
	}
}
