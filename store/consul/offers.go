package consul

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/seal"
)

// Offer is a certificate that a node has and the store has not, or not as good.
type Offer struct {
	Node        string
	Certificate *store.Certificate
}

// Offer gives the leader a certificate of this node's, sealed. The leader takes it after checking it itself.
func (s *Store) Offer(ctx context.Context, cert *store.Certificate) error {
	sealer, err := s.opener(ctx)
	if err != nil {
		return fmt.Errorf("offer %s: %w", cert.Name, err)
	}
	value, err := store.Encode(cert, sealer)
	if err != nil {
		return fmt.Errorf("offer %s: %w", cert.Name, err)
	}
	if err := s.c.put(ctx, s.keys.offers(s.cfg.Node)+cert.Name, value); err != nil {
		return fmt.Errorf("offer %s: %w", cert.Name, err)
	}
	return nil
}

// Withdraw takes this node's offer back. That there is none is no error.
func (s *Store) Withdraw(ctx context.Context, certificate string) error {
	if err := s.c.remove(ctx, s.keys.offers(s.cfg.Node)+certificate); err != nil {
		return fmt.Errorf("withdraw the offer of %s: %w", certificate, err)
	}
	return nil
}

// Offers reads what nodes offer under a name, any name if it is empty. What can't be read is in unreadable.
func (s *Store) Offers(ctx context.Context, certificate string) (offers []Offer, unreadable []error, err error) {
	keys, _, err := s.c.names(ctx, s.keys.dir("nodes"), "", 0)
	if err != nil {
		return nil, nil, fmt.Errorf("list offers: %w", err)
	}
	sealer, err := s.opener(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list offers: %w", err)
	}
	for _, key := range keys {
		node, name, ok := strings.Cut(strings.TrimPrefix(key, s.keys.dir("nodes")), "/offer/")
		if !ok || certificate != "" && name != certificate {
			continue
		}
		p, _, err := s.c.get(ctx, key, 0)
		if err != nil {
			return nil, nil, fmt.Errorf("list offers: %w", err)
		}
		if p == nil {
			continue
		}
		r, err := store.Decode(store.Key{Kind: store.KindIssued, Name: name}, p.Value, sealer)
		if err != nil {
			unreadable = append(unreadable, fmt.Errorf("offer of node %s: %w", node, err))
			continue
		}
		offers = append(offers, Offer{node, r.(*store.Certificate)})
	}
	return offers, unreadable, nil
}

// FollowOffers calls changed at once and whenever there are other offers, until ctx ends.
func (s *Store) FollowOffers(ctx context.Context, changed func()) error {
	var last []string
	first := true
	read := func(ctx context.Context, index uint64) ([]string, uint64, error) {
		return s.c.names(ctx, s.keys.dir("nodes"), "", index)
	}
	watch(ctx, s.c, "offers", read, func(keys []string) bool {
		keys = slices.DeleteFunc(keys, func(k string) bool { return !strings.Contains(k, "/offer/") })
		news := first || !slices.Equal(keys, last)
		first, last = false, keys
		if news {
			changed()
		}
		return news
	})
	return nil
}

// Reseal seals anew what is sealed with another key than it would be now, and returns the keys that nothing is sealed with
// any more and that another one has succeeded, in the words of `spoacme keygen`: they may be dropped from the keysets. What was looked
// through in this term with the same keys is not looked through again for an hour.
func (s *Store) Reseal(ctx context.Context, lease store.Lease) (unused []string, err error) {
	l, ok := lease.(*leaseTerm)
	if s.cfg.Keys == nil || s.cfg.Plain || !ok {
		return nil, nil
	}
	with := s.cfg.Keys.Current(store.KindIssued, s.usable) + " " + s.cfg.Keys.Current(store.KindOrder, s.usable)
	if l.sealedWith == with && time.Since(l.sealedAt) < time.Hour {
		return l.unused, nil
	}
	if unused, err = s.resealAll(ctx, lease); err == nil {
		l.sealedWith, l.sealedAt, l.unused = with, time.Now(), unused
	}
	return unused, err
}

func (s *Store) resealAll(ctx context.Context, lease store.Lease) (unused []string, err error) {
	used := map[string]bool{}
	defer func() {
		if err == nil && s.cfg.FromPlain && !used[""] {
			s.log.Info("nothing is stored plain any more: SPOACME_SEAL=from-plain may be taken out")
		}
	}()
	for _, kind := range []store.Kind{store.KindIssued, store.KindAccount, store.KindOrder} {
		if err := s.resealKind(ctx, lease, kind, used); err != nil {
			return nil, fmt.Errorf("seal %s anew: %w", kind, err)
		}
	}
	for _, id := range s.cfg.Keys.IDs() {
		if !used[id] && s.cfg.Keys.Former(id) {
			unused = append(unused, seal.Words(id))
		}
	}
	return unused, nil
}

// resealKind notes in used which keys are in use in the end.
func (s *Store) resealKind(ctx context.Context, lease store.Lease, kind store.Kind, used map[string]bool) error {
	dir := s.keys.dir(string(kind))
	pairs, _, err := s.c.list(ctx, dir, 0)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		name, ok := nameBelow(dir, p.Key)
		private := privateOf(p.Value)
		if !ok || private == "" {
			continue
		}
		old, now := s.cfg.Keys.KeyOf(kind, private), s.cfg.Keys.Current(kind, s.usable)
		if old == now {
			used[now] = true
			continue
		}
		if err := s.resealOne(ctx, lease, store.Key{Kind: kind, Name: name}); err != nil {
			used[old] = true
			s.log.Warn("a record is not sealed anew", "key", p.Key, "err", err)
			continue
		}
		used[now] = true
	}
	return nil
}

func (s *Store) resealOne(ctx context.Context, lease store.Lease, key store.Key) error {
	e, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	return s.Commit(ctx, lease, []store.Precondition{{Key: key, Revision: e.Revision}}, []store.Op{store.Put(e.Record)})
}
