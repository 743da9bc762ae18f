package store

// Write is one operation of a commit, checked and encoded: Data is nil when the record is deleted.
type Write struct {
	Key  Key
	Data []byte
}

// EncodeCommit checks a commit against everything that can be told without looking at the store (keys, limits,
// records, whether it needs a lease) and encodes it. Its errors wrap ErrRefused. A key may be written once only.
// MaxOperations counts the operations and the preconditions on keys that no operation writes.
func EncodeCommit(lease Lease, pre []Precondition, ops []Op, s Sealer) ([]Write, error) {
	written := make(map[Key]bool, len(ops))
	for _, op := range ops {
		if err := checkOp(lease, op); err != nil {
			return nil, err
		}
		if written[op.Key] {
			return nil, Refusedf("%s is written twice", op.Key)
		}
		written[op.Key] = true
	}
	count := len(ops)
	for _, p := range pre {
		if err := validKey(p.Key); err != nil {
			return nil, Refusedf("precondition: %w", err)
		}
		if !written[p.Key] {
			count++
		}
	}
	if count > MaxOperations {
		return nil, Refusedf("%d operations, the limit is %d", count, MaxOperations)
	}
	return encodeOps(ops, s)
}

func checkOp(lease Lease, op Op) error {
	if err := validKey(op.Key); err != nil {
		return Refusedf("%w", err)
	}
	if op.Record != nil && op.Record.Key() != op.Key {
		return Refusedf("%s: the record says that it is %s", op.Key, op.Record.Key())
	}
	if lease == nil && op.Key.Kind.LeaderOnly() {
		return Refusedf("%s is written under the lease only", op.Key)
	}
	return nil
}

func encodeOps(ops []Op, s Sealer) ([]Write, error) {
	size := 0
	writes := make([]Write, len(ops))
	for i, op := range ops {
		writes[i].Key = op.Key
		if op.Record == nil {
			continue
		}
		data, err := Encode(op.Record, s)
		if err != nil {
			return nil, Refusedf("%w", err)
		}
		writes[i].Data = data
		size += len(data)
	}
	if size > MaxCommitBytes {
		return nil, Refusedf("%d bytes, the limit is %d", size, MaxCommitBytes)
	}
	return writes, nil
}
