package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spoacme/spoacme/store"
)

// publication is the tokens of one order on their way to the nodes.
type publication struct {
	record *store.Challenges
	done   chan error // takes one
}

// publish stores all tokens of an order in one commit and waits until the nodes have them, or for the barrier's time.
func (t *term) publish(ctx context.Context, name, thumbprint string, tokens []string) error {
	p := publication{&store.Challenges{Name: name, Thumbprint: thumbprint, Tokens: tokens}, make(chan error, 1)}
	select {
	case t.publications <- p:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-p.done:
		if err != nil {
			return fmt.Errorf("publish tokens: %w", err)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return t.await(ctx, p.record.Generation)
}

// errNobody means that nobody would answer the CA. To ask it all the same is a failed validation, of which it allows few.
var errNobody = &failure{class: classNobody, own: true, err: errors.New(
	"no HAProxy answers challenges yet, so the CA is not asked; if that goes on, run `spoacme check` where HAProxy runs")}

// await is the barrier. Orders whose tokens went out together wait together. Where it is not known which nodes are
// live, or not one of them has the tokens, the CA is not asked.
func (t *term) await(ctx context.Context, generation uint64) error {
	_, err, _ := t.barriers.Do(strconv.FormatUint(generation, 10), func() (any, error) {
		bctx, cancel := context.WithTimeout(t.ctx, t.barrier)
		defer cancel()
		start := time.Now()
		missing, err := t.store.Barrier(bctx, generation)
		if t.ctx.Err() != nil {
			return nil, context.Cause(t.ctx)
		}
		if err != nil {
			return nil, &storeError{err}
		}
		if t.nobody(ctx, missing) {
			return nil, errNobody
		}
		if len(missing) > 0 {
			t.metrics.missing.Inc()
			t.log.Warn("not every node has the tokens; the CA is asked all the same",
				"node", missing, "waited", time.Since(start).Round(time.Millisecond))
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	return ctx.Err()
}

// nobody reports whether all nodes that are live are missing.
func (t *term) nobody(ctx context.Context, missing []string) bool {
	if t.fleet == nil {
		return len(missing) > 0
	}
	live, err := t.fleet.Live(ctx)
	return err == nil && !slices.ContainsFunc(live, func(node string) bool { return !slices.Contains(missing, node) })
}

// publisher writes the publications of a term, one commit after the other, so that generations reach the store in
// their order: a node that has one has all before it. What waits goes together.
func (t *term) publisher(ctx context.Context) error {
	for {
		var batch []publication
		select {
		case <-ctx.Done():
			return nil
		case p := <-t.publications:
			batch = append(batch, p)
		}
		for size := weight(batch[0]); len(batch) < store.MaxOperations; {
			select {
			case p := <-t.publications:
				if size += weight(p); size > store.MaxCommitBytes/2 {
					t.announce(ctx, batch)
					batch, size = nil, weight(p)
				}
				batch = append(batch, p)
				continue
			default:
			}
			break
		}
		t.announce(ctx, batch)
	}
}

func weight(p publication) int {
	n := 512
	for _, token := range p.record.Tokens {
		n += len(token) + 4
	}
	return n
}

// announce commits a batch under the next generation. A generation is never used twice, also not after an unknown result.
func (t *term) announce(ctx context.Context, batch []publication) {
	var err error
	for range 3 {
		t.generation = max(t.generation+1, uint64(time.Now().UnixMicro()))
		ops := make([]store.Op, len(batch))
		for i, p := range batch {
			p.record.Generation = t.generation
			ops[i] = store.Put(p.record)
		}
		if err = t.store.Commit(ctx, t.lease, nil, ops); !errors.Is(err, store.ErrUnknown) {
			break
		}
	}
	if err != nil {
		err = &storeError{err}
	}
	for _, p := range batch {
		p.done <- err
	}
}

// firstGeneration makes the term go on above everything that is published.
func (t *term) firstGeneration(x *index) {
	for _, g := range x.challenges {
		t.generation = max(t.generation, g)
	}
}
