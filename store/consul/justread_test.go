package consul

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

func TestJustRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const dir = "le/attempt/"
		key := store.Key{Kind: store.KindAttempt, Name: "shop"}
		at := func(index uint64) api.KVPairs {
			return api.KVPairs{{Key: dir + "shop", ModifyIndex: index}, {Key: dir + "mail", ModifyIndex: index}}
		}
		var j justRead
		demand := func(what string, index uint64, known bool) {
			t.Helper()
			p, ok := j.get(key)
			if ok != known || index > 0 && (p == nil || p.ModifyIndex != index) || index == 0 && p != nil {
				t.Errorf("%s: %v, %t", what, p, ok)
			}
		}
		demand("nothing was read", 0, false)
		j.put(dir, at(7), 7, []store.Key{key})
		demand("read", 7, true)
		if _, ok := j.get(store.Key{Kind: store.KindAttempt, Name: "mail"}); ok {
			t.Error("what has not changed is kept")
		}
		j.put(dir, at(9), 9, []store.Key{key})
		demand("read by a faster watch", 9, true)
		j.put(dir, at(8), 8, []store.Key{key})
		demand("and then by one that had read before", 0, false)
		j.put(dir, at(8), 8, []store.Key{key})
		demand("and again", 0, false)
		j.put(dir, nil, 10, []store.Key{key})
		demand("deleted", 0, true)
		j.drop([]store.Write{{Key: key}})
		demand("written by ourselves", 0, false)
		j.put(dir, at(11), 11, []store.Key{key})
		time.Sleep(justReadFor)
		synctest.Wait()
		demand("a second later", 0, false)
	})
}
