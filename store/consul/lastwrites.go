package consul

import (
	"strconv"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// lastWrites is at which index the leader of a term wrote a key last. What is still at that index is its own and readable, so
// that it can be written over without a look at it first: of the reads that 200 orders cost, most are spared.
type lastWrites struct {
	mu sync.Mutex
	at map[string]uint64 // by key in Consul; 0 when it was deleted
}

// maxLastWrites is when it begins anew.
const maxLastWrites = 20_000

// done notes what a transaction wrote; without its results it is only known that it did.
func (l *lastWrites) done(b *batch, results api.TxnResults) {
	index := make(map[string]uint64, len(results))
	for _, r := range results {
		if r.KV != nil {
			index[r.KV.Key] = r.KV.ModifyIndex
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil || len(l.at) > maxLastWrites {
		l.at = map[string]uint64{}
	}
	for i, op := range b.ops {
		if b.owners[i] == nil {
			continue
		}
		at, told := index[op.KV.Key]
		switch op.KV.Verb {
		case api.KVSet, api.KVCAS:
			if told {
				l.at[op.KV.Key] = at
			} else {
				delete(l.at, op.KV.Key)
			}
		case api.KVDelete, api.KVDeleteCAS:
			if results != nil {
				l.at[op.KV.Key] = 0
			} else {
				delete(l.at, op.KV.Key)
			}
		}
	}
}

// guards returns preconditions that keys are as this term left them, and whether it has written all of them.
func (w *writer) guards(keys []store.Key) (guards []store.Precondition, all bool) {
	w.last.mu.Lock()
	defer w.last.mu.Unlock()
	for _, k := range keys {
		at, ok := w.last.at[w.l.s.keys.record(k)]
		if !ok {
			return nil, false
		}
		p := store.Precondition{Key: k}
		if at > 0 {
			p.Revision = store.Revision(strconv.FormatUint(at, 10) + "-")
		}
		guards = append(guards, p)
	}
	return guards, true
}

func (w *writer) forget(guards []store.Precondition) {
	w.last.mu.Lock()
	defer w.last.mu.Unlock()
	for _, g := range guards {
		delete(w.last.at, w.l.s.keys.record(g.Key))
	}
}
