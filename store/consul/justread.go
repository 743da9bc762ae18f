package consul

import (
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// justReadFor is how long what a watch has read is handed to those who heard of the change from it.
const justReadFor = time.Second

// justRead is the records that a watch has just found changed: who hears of that reads them, and while 200 orders go on that
// would be 400 reads by each of 50 nodes of what their watches had read already.
type justRead struct {
	mu    sync.Mutex
	pairs map[store.Key]*justPair
}

type justPair struct {
	pair  *api.KVPair // nil when it is gone
	index uint64      // of the newest read
	mixed bool        // an older read came after it
}

// put keeps what a read of a whole prefix found of the keys that changed. Several watches may read the same prefix: when one that
// read earlier comes later, or the store went back, neither is kept, so that nobody is given less than he heard of.
func (j *justRead) put(dir string, pairs api.KVPairs, index uint64, keys []store.Key) {
	if len(keys) == 0 {
		return
	}
	found := make(map[string]*api.KVPair, len(pairs))
	for _, p := range pairs {
		found[strings.TrimPrefix(p.Key, dir)] = p
	}
	kept := make(map[store.Key]*justPair, len(keys))
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pairs == nil {
		j.pairs = map[store.Key]*justPair{}
	}
	for _, k := range keys {
		if old := j.pairs[k]; old != nil && old.index > index {
			kept[k] = &justPair{index: old.index, mixed: true}
		} else {
			kept[k] = &justPair{pair: found[k.Name], index: index}
		}
		j.pairs[k] = kept[k]
	}
	time.AfterFunc(justReadFor, func() { j.forget(kept) })
}

func (j *justRead) forget(kept map[store.Key]*justPair) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for k, p := range kept {
		if j.pairs[k] == p {
			delete(j.pairs, k)
		}
	}
}

// drop is called before this process writes records: it reads its own writes.
func (j *justRead) drop(writes []store.Write) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, w := range writes {
		delete(j.pairs, w.Key)
	}
}

func (j *justRead) get(key store.Key) (*api.KVPair, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p, ok := j.pairs[key]
	if !ok || p.mixed {
		return nil, false
	}
	return p.pair, true
}
