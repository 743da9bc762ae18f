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

type justPair struct{ pair *api.KVPair } // nil when it is gone

// put keeps what a read of a whole prefix found of the keys that changed.
func (j *justRead) put(dir string, pairs api.KVPairs, keys []store.Key) {
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
		kept[k] = &justPair{found[k.Name]}
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
	if !ok {
		return nil, false
	}
	return p.pair, true
}
