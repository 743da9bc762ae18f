package consul

import (
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

func issued(name, tag string) changedKey {
	return changedKey{store.Key{Kind: store.KindIssued, Name: name}, tag}
}

func TestFeedChain(t *testing.T) {
	var f feedRecord
	f.Epoch = "e"
	f = f.next("one", []changedKey{issued("shop", "11111111")})
	known := f.last()
	f = f.next("two", []changedKey{issued("shop", "22222222"), issued("mail", "")})
	back, err := parseFeed(&api.KVPair{Value: f.encode(), ModifyIndex: 7})
	if err != nil || back.index != 7 {
		t.Fatal(err)
	}
	keys, ok := back.since(known)
	if !ok || len(keys) != 2 || keys[0] != issued("shop", "22222222") || keys[1] != issued("mail", "") {
		t.Error(keys, ok)
	}
	if keys, ok := back.since(back.last()); !ok || len(keys) != 0 {
		t.Error("nothing new:", keys, ok)
	}
	// The same number in another history.
	if _, ok := back.since(feedChange{Seq: known.Seq, ID: "other"}); ok {
		t.Error("a restore was not recognised")
	}
	if _, ok := back.since(feedChange{}); ok {
		t.Error("whoever knows nothing must compare everything")
	}
}

func TestFeedStaysShort(t *testing.T) {
	f := feedRecord{Epoch: "e"}
	for i := range 1000 {
		var keys []changedKey
		for j := range i % 16 {
			keys = append(keys, issued(fmt.Sprintf("certificate-%d-%d", i, j), "12345678"))
		}
		f = f.next(fmt.Sprint(i), keys)
		if n := len(f.encode()); n > maxFeedBytes {
			t.Fatalf("%d bytes after %d changes", n, i)
		}
		if f.Seq != uint64(i+1) || f.last().Seq != f.Seq {
			t.Fatal("wrong number", f.Seq)
		}
	}
	if len(f.Changes) < 5 {
		t.Errorf("only %d changes are kept", len(f.Changes))
	}
}

func TestBadFeeds(t *testing.T) {
	for _, value := range []string{"", "{", "[]", `{"epoch":"e"}`, `{"changes":[{}]}`} {
		if _, err := parseFeed(&api.KVPair{Value: []byte(value)}); err == nil {
			t.Errorf("%q was taken", value)
		}
	}
	if f, err := parseFeed(nil); err != nil || f.index != 0 {
		t.Error("no feed:", err)
	}
}

func TestRevisions(t *testing.T) {
	a, b := &api.KVPair{ModifyIndex: 9, Value: []byte("a")}, &api.KVPair{ModifyIndex: 9, Value: []byte("b")}
	if revision(a) == revision(b) {
		t.Error("after a restore two values have one revision")
	}
	if n, err := indexOf(revision(a)); n != 9 || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []store.Revision{"", "x", "9", "0-aaaaaaaa", "-1-a"} {
		if _, err := indexOf(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
