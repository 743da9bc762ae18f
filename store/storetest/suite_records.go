package storetest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

func encoded(s *suite, r store.Record) string {
	s.Helper()
	b, err := store.Encode(r, store.Plain{})
	if err != nil {
		s.Fatal(err)
	}
	return string(b)
}

func testKinds(s *suite) {
	lease := s.lead()
	var puts, deletes []store.Op
	for _, r := range Records("shop") {
		s.absent(r.Key())
		puts = append(puts, store.Put(r))
		deletes = append(deletes, store.Delete(r.Key()))
	}
	s.commit(lease, nil, puts...)
	for _, r := range Records("shop") {
		if got, want := encoded(s, s.get(r.Key()).Record), encoded(s, r); got != want {
			s.Errorf("%s: got\n%s, want\n%s", r.Key(), got, want)
		}
		if n := len(s.list(r.Key().Kind).Entries); n != 1 {
			s.Errorf("%s: %d listed", r.Key(), n)
		}
	}
	s.commit(lease, nil, deletes...)
	s.commit(lease, nil, deletes...) // what is absent
	for _, r := range Records("shop") {
		s.absent(r.Key())
	}
	s.absent(store.Key{Kind: "odd", Name: "x"})
	s.absent(demandKey("../demand/x"))
	if _, err := s.List(s.ctx(), "odd"); err == nil {
		s.Error("a list of an unknown kind")
	}
}

func testList(s *suite) {
	names := []string{"a", "a-1", "a.b", "a_", "b", "z"}
	for _, i := range []int{3, 0, 5, 1, 4, 2} {
		s.commit(nil, nil, store.Put(demand(names[i], i)))
	}
	s.commit(nil, nil, store.Put(demand("gone", 1)))
	s.commit(nil, nil, store.Delete(demandKey("gone")))
	list := s.list(store.KindDemand)
	if len(list.Entries) != len(names) || len(list.Unreadable) != 0 {
		s.Fatalf("%d listed, %v", len(list.Entries), list.Unreadable)
	}
	for i, e := range list.Entries {
		if e.Key.Name != names[i] || e.Revision != s.get(e.Key).Revision || encoded(s, e.Record) != encoded(s, demand(names[i], i)) {
			s.Errorf("%d: %s", i, e.Key)
		}
	}
	if n := len(s.list(store.KindRequest).Entries); n != 0 {
		s.Errorf("%d requests", n)
	}
}

func testCopies(s *suite) {
	r := demand("n", 1)
	s.commit(nil, nil, store.Put(r))
	r.Since = time.Time{}
	got := s.get(r.Key()).Record.(*store.Demand)
	got.Since = time.Time{}
	s.list(store.KindDemand).Entries[0].Record.(*store.Demand).Since = time.Time{}
	if s.get(r.Key()).Record.(*store.Demand).Since.IsZero() {
		s.Error("a record in the store was changed from outside")
	}
}

func testRevisions(s *suite) {
	key := demandKey("n")
	seen := map[store.Revision]int{}
	for i := range 20 {
		s.commit(nil, nil, store.Put(demand("n", i%2)))
		e := s.get(key)
		if before, ok := seen[e.Revision]; ok {
			s.Fatalf("change %d has the revision of change %d", i, before)
		}
		seen[e.Revision] = i
		s.commit(nil, nil, store.Put(demand("other", i)))
		if s.get(key).Revision != e.Revision {
			s.Error("the revision changed without a change")
		}
		if i%3 == 0 {
			s.commit(nil, nil, store.Delete(key))
			s.absent(key)
		}
	}
}

var garbage = []string{"", "{", `"hush-hush"`, `{"v":1,"node":"else"}`, `{"v":1,"node":"bad","since":"hush-hush"}`,
	strings.Repeat("hush-hush", store.MaxRecordBytes/9+1)}

func testUnreadable(s *suite) {
	s.commit(nil, nil, store.Put(demand("good", 1)))
	for i, raw := range garbage {
		name := fmt.Sprint("bad", i)
		key := demandKey(name)
		s.hooks.Edit(s.T, s.Store, key, []byte(strings.ReplaceAll(raw, `"bad"`, `"`+name+`"`)))
		e, err := s.Get(s.ctx(), key)
		if !errors.Is(err, store.ErrUnreadable) || errors.Is(err, store.ErrAbsent) || e.Record != nil {
			s.Errorf("%.20q: %v", raw, err)
			continue
		}
		if e.Key != key || e.Revision == "" {
			s.Errorf("%.20q: no revision", raw)
		}
		if strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), key.String()) {
			s.Errorf("%.20q: a bad error: %v", raw, err)
		}
		s.refused("unreadable", nil, nil, store.Put(demand("good", 2)), store.Put(demand(name, 1)))
		s.refused("unreadable", nil, nil, store.Delete(key))
		s.refused("", nil, at(key, ""), store.Put(demand(name, 1)))
		if again, err := s.Get(s.ctx(), key); !errors.Is(err, store.ErrUnreadable) || again.Revision != e.Revision {
			s.Errorf("%.20q was not left alone: %v", raw, err)
		}
	}
	list := s.list(store.KindDemand)
	if len(list.Entries) != 1 || encoded(s, list.Entries[0].Record) != encoded(s, demand("good", 1)) {
		s.Errorf("%d records are readable", len(list.Entries))
	}
	if len(list.Unreadable) != len(garbage) {
		s.Errorf("reported: %v", list.Unreadable)
	}
	for i, err := range list.Unreadable {
		if !errors.Is(err, store.ErrUnreadable) || !strings.Contains(err.Error(), fmt.Sprint("demand/bad", i)) {
			s.Error(err)
		}
	}
}

func testUnreadableReplaced(s *suite) {
	for _, replace := range []bool{true, false} {
		key := demandKey("bad")
		s.hooks.Edit(s.T, s.Store, key, []byte("{"))
		e, err := s.Get(s.ctx(), key)
		if !errors.Is(err, store.ErrUnreadable) {
			s.Fatal(err)
		}
		if replace {
			s.commit(nil, at(key, e.Revision), store.Put(demand("bad", 1)))
			s.get(key)
		} else {
			s.commit(nil, at(key, e.Revision), store.Delete(key))
			s.absent(key)
		}
	}
}

func testUnknownFields(s *suite) {
	key := demandKey("n")
	s.hooks.Edit(s.T, s.Store, key, []byte(`{"v":2,"node":"n","since":"2026-06-01T12:00:00Z","newer":{"x":[1]},"certificates":{"shop":{"domains":["a.example"],"shiny":true}}}`))
	e := s.get(key)
	r := e.Record.(*store.Demand)
	r.Since = r.Since.Add(time.Hour)
	s.commit(nil, at(key, e.Revision), store.Put(r))
	got := encoded(s, s.get(key).Record)
	want := `{"certificates":{"shop":{"domains":["a.example"],"shiny":true}},"newer":{"x":[1]},"node":"n","since":"2026-06-01T13:00:00Z","v":2}`
	if got != want {
		s.Errorf("got  %s\nwant %s", got, want)
	}
}

func testEditsAreRead(s *suite) {
	key := demandKey("n")
	s.hooks.Edit(s.T, s.Store, key, []byte(encoded(s, demand("n", 1))))
	s.get(key)
	s.hooks.Edit(s.T, s.Store, demandKey("m"), []byte(encoded(s, demand("m", 1))))
	if n := len(s.list(store.KindDemand).Entries); n != 2 {
		s.Errorf("%d listed", n)
	}
	s.commit(nil, nil, store.Put(demand("n", 2)))
	s.hooks.Edit(s.T, s.Store, key, nil)
	s.absent(key)
	s.commit(nil, at(key, ""), store.Put(demand("n", 3)))
	s.get(key)
}

func testEditRevisions(s *suite) {
	key := demandKey("n")
	s.commit(nil, nil, store.Put(demand("n", 1)))
	first := s.get(key)
	s.hooks.Edit(s.T, s.Store, key, []byte(encoded(s, demand("n", 2))))
	s.refused(key.String(), nil, at(key, first.Revision), store.Put(demand("n", 3)))
	second := s.get(key)
	if second.Revision == first.Revision || encoded(s, second.Record) != encoded(s, demand("n", 2)) {
		s.Error("the edit was lost")
	}
	s.hooks.Edit(s.T, s.Store, key, nil)
	s.refused(key.String(), nil, at(key, second.Revision), store.Put(demand("n", 3)))
	s.absent(key)
}
