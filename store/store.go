// Package store is the vocabulary that the sidecars share: the records (what is wanted, what is
// issued, which orders are in flight, which tokens must be answered), their encoding and limits,
// and what every store promises, whether it is a directory on one node or Consul for a fleet.
//
// It holds no policy: when to issue is the issuer's business, what to serve is the data plane's.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// What a store can answer beside success.
var (
	// ErrAbsent means that there is no record under the key.
	ErrAbsent = errors.New("no such record")
	// ErrRefused means that nothing of a commit was written: a precondition does not hold, the
	// lease has ended, or a limit is exceeded.
	ErrRefused = errors.New("commit refused")
	// ErrStorage comes with ErrRefused or ErrUnknown when the fault is that of the disk, or of whatever else the store is
	// kept on, and not of what was to be written.
	ErrStorage = errors.New("the store can't be written")
	// ErrUnknown means that a commit may or may not have been written, wholly in either case.
	// Read again before doing anything else.
	ErrUnknown = errors.New("commit result unknown")
	// ErrUnreadable means that a record exists and cannot be understood. It is left alone.
	ErrUnreadable = errors.New("unreadable record")
	// ErrLeaseEnded is the cause of every lease that is over.
	ErrLeaseEnded = errors.New("lease ended")
)

// Limits of one commit and of one record. They fit every Consul server that is supported.
const (
	MaxOperations  = 60
	MaxCommitBytes = 350 << 10
	MaxRecordBytes = 300 << 10
)

// Kind is the first part of a key: what sort of record it holds.
type Kind string

// The kinds of records. FLEET keys are "<kind>/<name>".
const (
	KindWanted     Kind = "wanted"     // *Wanted, by certificate name
	KindIssued     Kind = "issued"     // *Certificate, by certificate name
	KindOrder      Kind = "order"      // *Order, by certificate name
	KindAttempt    Kind = "attempt"    // *Attempt, by certificate name
	KindBudget     Kind = "budget"     // *Budget, by CA id
	KindAccount    Kind = "account"    // *Account, by account id
	KindChallenges Kind = "challenges" // *Challenges, by certificate name
	KindDemand     Kind = "demand"     // *Demand, by node name
	KindRequest    Kind = "request"    // *Request, by request id
)

// Kinds lists every kind.
func Kinds() []Kind {
	return []Kind{KindWanted, KindIssued, KindOrder, KindAttempt, KindBudget, KindAccount,
		KindChallenges, KindDemand, KindRequest}
}

// LeaderOnly reports whether records of this kind are written under the lease only.
func (k Kind) LeaderOnly() bool { return k != KindDemand && k != KindRequest }

// Key names one record.
type Key struct {
	Kind Kind
	Name string
}

func (k Key) String() string { return string(k.Kind) + "/" + k.Name }

// Revision is opaque: two equal revisions of a key mean that the record did not change between
// them. The zero Revision means "absent".
type Revision string

// Entry is a record with the revision at which it was read.
type Entry struct {
	Key      Key
	Record   Record
	Revision Revision
}

// Listing is all records of one kind, ordered by name.
type Listing struct {
	Entries []Entry
	// Unreadable holds one error per record that was skipped; each wraps ErrUnreadable and names the key.
	Unreadable []error
}

// Precondition demands that a key is at a revision when the commit happens; the zero Revision
// demands that it is absent.
type Precondition struct {
	Key      Key
	Revision Revision
}

// Op is one write of a commit: Put when Record is set, otherwise a delete of Key. Deleting what is
// absent is no error.
type Op struct {
	Key    Key
	Record Record
}

// Put writes a record under its own key.
func Put(r Record) Op { return Op{Key: r.Key(), Record: r} }

// Delete removes the record under a key.
func Delete(k Key) Op { return Op{Key: k} }

// Lease is the right to write what only the leader writes.
type Lease interface {
	// Context ends when the lease does; its cause wraps ErrLeaseEnded and says why.
	Context() context.Context
	// Release gives the lease back. It is idempotent.
	Release()
}

// Store is what the sidecars share. All methods may be called at once from many goroutines.
// Every error of a method names the key or the operation.
type Store interface {
	// Get reads one record. Errors wrap ErrAbsent or ErrUnreadable where they apply; the entry
	// of an unreadable record has its Key and Revision, so that it can be replaced knowingly.
	// A read sees every commit of this process that was reported as done.
	Get(ctx context.Context, key Key) (Entry, error)

	// List reads all records of a kind. What can't be read is reported and left alone; an error
	// means that nothing is known, never that nothing is there.
	List(ctx context.Context, kind Kind) (Listing, error)

	// Commit writes all operations or none. lease may be nil when no operation is LeaderOnly; one
	// that is given must hold. With no operations it checks lease and preconditions.
	// It returns nil when the commit is durable, an error that wraps ErrRefused when nothing was
	// written, and one that wraps ErrUnknown when the outcome can't be told. What is unreadable is
	// replaced or deleted only with a precondition that names its revision, otherwise refused.
	Commit(ctx context.Context, lease Lease, pre []Precondition, ops []Op) error

	// Follow calls changed whenever records of the given kinds may have changed, until ctx ends; the first
	// call comes at once. keys is what changed, or nil for "look at everything". Changes may be
	// merged, and foreign edits are seen, but no change is lost. With no kinds it follows all.
	// It returns nil when ctx ended.
	Follow(ctx context.Context, changed func(keys []Key), kinds ...Kind) error

	// Lead blocks until this process holds the lease or ctx ends. The lease outlives ctx.
	Lead(ctx context.Context) (Lease, error)

	// Ack says that this node's token table holds all Challenges up to generation.
	Ack(ctx context.Context, generation uint64) error

	// Barrier waits until every live node has acked generation, or ctx ends, which is no error. It
	// returns the names of the nodes that have not. An error means that it could not be told which
	// nodes are live: then nothing is known of any, and the tokens count as published nowhere.
	Barrier(ctx context.Context, generation uint64) (missing []string, err error)
}

// Refusedf makes an error that wraps ErrRefused.
func Refusedf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

func validKey(k Key) error {
	if !slices.Contains(Kinds(), k.Kind) {
		return fmt.Errorf("unknown kind %q", k.Kind)
	}
	return ValidName(k.Name)
}
