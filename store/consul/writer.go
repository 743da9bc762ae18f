package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// pace is the least time between two transactions: what is committed meanwhile goes into the next one together.
const pace = 20 * time.Millisecond

// writer is the only one that writes what belongs to the fleet, during one term. Each of its transactions proves the
// lock and moves the fence, a key that nobody watches, so that a transaction that was given up can't come true after
// a later one, and so that it can be told whether it did.
type writer struct {
	l     *leaseTerm
	queue chan *commit
	kept  *commit // taken from the queue and too much for its transaction

	fence    uint64 // index of the fence
	feed     feedState
	manifest map[byte]shard
	last     lastWrites
}

// batch is the commits of one transaction.
type batch struct {
	commits []*commit
	ops     api.TxnOps
	owners  []*commit // of each operation; nil for ours
	id      string    // the fence's value
	feed    *feedRecord
	parts   map[byte]shard
}

// do hands a commit to the writer and waits for what became of it.
func (w *writer) do(c *commit) error {
	select {
	case w.queue <- c:
	case <-w.l.ctx.Done():
		return store.Refusedf("%w", context.Cause(w.l.ctx))
	case <-c.ctx.Done():
		return store.Refusedf("%w", c.ctx.Err())
	}
	select {
	case err := <-c.result:
		return err
	case <-c.ctx.Done():
		return fmt.Errorf("%w: %w", store.ErrUnknown, c.ctx.Err())
	case <-w.l.written:
	}
	select {
	case err := <-c.result:
		return err
	default:
		return store.Refusedf("%w", context.Cause(w.l.ctx))
	}
}

// run writes until the term ends. It closes l.written when it will write no more.
func (w *writer) run() {
	defer close(w.l.written)
	ctx := w.l.ctx
	for {
		c := w.kept
		w.kept = nil
		if c == nil {
			select {
			case <-ctx.Done():
				return
			case c = <-w.queue:
			}
		}
		start := time.Now()
		w.write(w.gather(c))
		if !sleep(ctx, pace-time.Since(start)) {
			return
		}
	}
}

// gather takes what waits in the queue and fits into one transaction.
func (w *writer) gather(c *commit) []*commit {
	commits := []*commit{c}
	ops, bytes := w.weight(c)
	for {
		select {
		case c = <-w.queue:
		default:
			return commits
		}
		o, b := w.weight(c)
		ops += o
		bytes += b
		if ops > maxTxnOps-3 || bytes > maxTxnBytes-maxFeedBytes*2 {
			w.kept = c
			return commits
		}
		commits = append(commits, c)
	}
}

// weight is how many operations and bytes a commit adds, at most.
func (w *writer) weight(c *commit) (ops, bytes int) {
	bytes = size(c.ops)
	for name := range c.issued {
		bytes += 200 + size(api.TxnOps{kvOp(api.KVSet, "", w.manifest[shardOf(name)].encode(), 0)})
	}
	return len(c.ops) + len(c.issued), bytes
}

// write makes the transaction of some commits, again without those that Consul refuses, and answers all.
func (w *writer) write(commits []*commit) {
	for len(commits) > 0 {
		if err := w.l.holds(); err != nil {
			answer(commits, store.Refusedf("%w", err))
			return
		}
		b := w.prepare(commits)
		results, refused, err := w.l.s.c.txn(w.l.ctx, b.ops)
		switch {
		case err == nil && refused == nil:
			w.done(b, fenceIndex(results, w.l.s.keys.fence()))
			w.last.done(b, results)
			answer(commits, nil)
			return
		case err == nil:
			commits = w.refused(b, refused)
		case errors.Is(err, errNotDone) && len(commits) > 1:
			for _, c := range commits { // too large together, or one is not allowed
				w.write([]*commit{c})
			}
			return
		case errors.Is(err, errNotDone):
			answer(commits, notWritten(err))
			return
		default:
			w.resolve(b, err)
			return
		}
	}
}

// prepare puts proof, commits, manifest and feed together.
func (w *writer) prepare(commits []*commit) *batch {
	k := w.l.s.keys
	b := &batch{commits: commits, id: randomID(6), parts: map[byte]shard{}}
	b.add(nil, w.proof(b.id)...)
	var fed []changedKey
	for _, c := range commits {
		b.add(c, c.ops...)
		fed = append(fed, c.fed...)
		for name, sum := range c.issued {
			b.part(w.manifest, name, sum)
		}
	}
	for i, part := range b.parts {
		b.add(nil, kvOp(api.KVSet, k.manifest(i), part.encode(), 0))
	}
	if len(fed) > 0 {
		next := w.feed.next(b.id, fed)
		b.feed = &next
		b.add(nil, kvOp(api.KVCAS, k.feed(), next.encode(), w.feed.index))
	}
	return b
}

// proof is what every transaction of the leader begins with.
func (w *writer) proof(id string) api.TxnOps {
	check := kvOp(api.KVCheckSession, w.l.s.keys.leader(), nil, 0)
	check.KV.Session = w.l.session
	return api.TxnOps{check, kvOp(api.KVCAS, w.l.s.keys.fence(), []byte(id), w.fence)}
}

func (b *batch) add(owner *commit, ops ...*api.TxnOp) {
	for _, op := range ops {
		b.ops = append(b.ops, op)
		b.owners = append(b.owners, owner)
	}
}

// part changes a name in a copy of its part of the manifest.
func (b *batch) part(manifest map[byte]shard, name string, sum *Summary) {
	i := shardOf(name)
	part, ok := b.parts[i]
	if !ok {
		part = shard{Names: map[string]Summary{}}
		maps.Copy(part.Names, manifest[i].Names)
		b.parts[i] = part
	}
	if sum == nil {
		delete(part.Names, name)
	} else {
		part.Names[name] = *sum
	}
}

// fenceIndex finds the index of the transaction in its results.
func fenceIndex(results api.TxnResults, fence string) uint64 {
	for _, r := range results {
		if r.KV != nil && r.KV.Key == fence {
			return r.KV.ModifyIndex
		}
	}
	return 0
}

// done remembers what a transaction wrote.
func (w *writer) done(b *batch, index uint64) {
	w.fence = index
	w.l.s.metrics.txns.Inc()
	w.l.s.metrics.commits.Add(float64(len(b.commits)))
	w.l.own.add(index)
	w.l.s.fresh.wrote(index)
	maps.Copy(w.manifest, b.parts)
	if b.feed != nil {
		w.feed = feedState{*b.feed, index}
		w.l.s.observe(w.feed)
	}
}

// refused answers the commits that Consul would not have and returns the others. When the proof was refused the term
// is over.
func (w *writer) refused(b *batch, refused api.TxnErrors) (others []*commit) {
	mine := map[*commit]api.TxnErrors{}
	for _, e := range refused {
		if e.OpIndex < 0 || e.OpIndex >= len(b.owners) || b.owners[e.OpIndex] == nil {
			err := fmt.Errorf("the fence was refused: %w", refusal(b.ops, api.TxnErrors{e}))
			w.l.end(err)
			answer(b.commits, err)
			return nil
		}
		mine[b.owners[e.OpIndex]] = append(mine[b.owners[e.OpIndex]], e)
	}
	for _, c := range b.commits {
		if errs := mine[c]; errs != nil {
			c.result <- refusal(b.ops, errs)
		} else {
			others = append(others, c)
		}
	}
	return others
}

// resolve finds out what became of a transaction that was not answered: it moves the fence, after which that
// transaction can't come true any more, or finds that it came true already. While the term lasts, the answer is known.
func (w *writer) resolve(b *batch, unanswered error) {
	w.l.s.metrics.unknown.Inc()
	tries := w.l.s.c.newBackoff()
	own := map[string]bool{}
	for w.l.holds() == nil {
		id := randomID(6)
		own[id] = true
		results, refused, err := w.l.s.c.txn(w.l.ctx, w.proof(id))
		if err == nil && refused == nil {
			w.fence = fenceIndex(results, w.l.s.keys.fence())
			answer(b.commits, notWritten(unanswered))
			return
		}
		if err == nil {
			if w.lookAtFence(b, own, unanswered) {
				return
			}
		}
		sleep(w.l.ctx, tries.NextBackOff())
	}
	answer(b.commits, fmt.Errorf("%w: %w", store.ErrUnknown, unanswered))
}

// lookAtFence reads who moved the fence. It reports whether that told what became of b.
func (w *writer) lookAtFence(b *batch, own map[string]bool, unanswered error) bool {
	p, _, err := w.l.s.c.getConsistent(w.l.ctx, w.l.s.keys.fence())
	if err != nil {
		return false
	}
	switch {
	case p != nil && string(p.Value) == b.id:
		w.done(b, p.ModifyIndex)
		w.last.done(b, nil)
		answer(b.commits, nil)
		return true
	case p != nil && own[string(p.Value)]:
		w.fence = p.ModifyIndex
		answer(b.commits, notWritten(unanswered))
		return true
	case p != nil && p.ModifyIndex == w.fence:
		return false // refused for the session: the lease is about to see it
	}
	w.l.end(errors.New("the fence was moved by someone else"))
	return false
}

func answer(commits []*commit, err error) {
	for _, c := range commits {
		c.result <- err
	}
}
