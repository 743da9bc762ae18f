package main

import (
	"context"
	"log/slog"

	"github.com/spoacme/spoacme/spoa"
	"github.com/spoacme/spoacme/store"
)

// tokens keeps the agent's table as the Challenges records are, and acknowledges what is in it.
type tokens struct {
	store store.Store
	table *spoa.Table
	log   *slog.Logger
}

// Run follows the challenges until ctx ends.
func (t *tokens) Run(ctx context.Context) error {
	return follow(ctx, t.store, t.log, t.apply, store.KindChallenges)
}

func (t *tokens) apply(ctx context.Context, _ []store.Key) error {
	orders, generation, err := t.read(ctx)
	if err != nil {
		return err
	}
	if err := t.table.Replace(generation, orders); err != nil {
		t.log.Error("a challenge can't be answered", "err", err)
	}
	return t.store.Ack(ctx, generation)
}

// read returns the key authorizations by order and token.
func (t *tokens) read(ctx context.Context) (map[string]map[string]string, uint64, error) {
	l, err := t.store.List(ctx, store.KindChallenges)
	if err != nil {
		return nil, 0, err
	}
	orders, generation := map[string]map[string]string{}, uint64(0)
	for _, e := range l.Entries {
		ch := e.Record.(*store.Challenges)
		generation = max(generation, ch.Generation)
		auths := make(map[string]string, len(ch.Tokens))
		for _, token := range ch.Tokens {
			auths[token] = token + "." + ch.Thumbprint
		}
		orders[ch.Name] = auths
	}
	for _, err := range l.Unreadable {
		t.log.Error("a challenge can't be read", "err", err)
	}
	return orders, generation, nil
}

// miss is the second look of a node that has not seen a token yet.
func (t *tokens) miss(ctx context.Context, token string) (string, bool) {
	orders, _, err := t.read(ctx)
	if err != nil {
		return "", false
	}
	for _, auths := range orders {
		if a, ok := auths[token]; ok {
			return a, true
		}
	}
	return "", false
}
