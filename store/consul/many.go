package consul

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// fetchAtOnce is how many records are asked for at once: the oldest servers take 64 operations.
const fetchAtOnce = 60

// getMany reads records in one request, or in two when some are not there, which are left out.
func (s *Store) getMany(ctx context.Context, keys []store.Key) (map[store.Key]*api.KVPair, error) {
	if len(keys) == 1 {
		p, _, err := s.c.get(ctx, s.keys.record(keys[0]), 0)
		if err != nil || p == nil {
			return nil, err
		}
		return map[store.Key]*api.KVPair{keys[0]: p}, nil
	}
	for len(keys) > 0 {
		ops := make(api.TxnOps, len(keys))
		at := make(map[string]store.Key, len(keys))
		for i, k := range keys {
			ops[i] = kvOp(api.KVGet, s.keys.record(k), nil, 0)
			at[ops[i].KV.Key] = k
		}
		results, refused, err := s.c.txn(ctx, ops)
		if err != nil {
			return nil, fmt.Errorf("read %d records: %w", len(keys), err)
		}
		if len(refused) == 0 {
			found := make(map[store.Key]*api.KVPair, len(results))
			for _, r := range results {
				found[at[r.KV.Key]] = r.KV
			}
			if len(found) != len(keys) { // that is how Consul says that a read in a transaction is forbidden
				return nil, fmt.Errorf("read %d records: %w: give the token the policy of its role, see haproxy-conf/consul", len(keys), errForbidden)
			}
			return found, nil
		}
		gone := map[store.Key]bool{}
		for _, e := range refused {
			if e.OpIndex >= 0 && e.OpIndex < len(keys) && !isForbidden(e.What) {
				gone[keys[e.OpIndex]] = true
			}
		}
		if len(gone) == 0 {
			return nil, refusal(ops, refused)
		}
		keys = slices.DeleteFunc(slices.Clone(keys), func(k store.Key) bool { return gone[k] })
	}
	return nil, nil
}
