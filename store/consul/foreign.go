package consul

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// classicFlag marks our own copies among the certificates of other tools.
const classicFlag = 0x5b0ac3e

// Foreign is a certificate that another tool put below certs/. It is deployed and never renewed.
type Foreign struct {
	Name     string // the key's last part without .crt or .pem
	Bundle   *store.Bundle
	Revision store.Revision
}

// foreignName is the certificate's name in a key below certs/.
func foreignName(key string) string {
	for _, ext := range []string{".crt", ".pem"} {
		if name, ok := strings.CutSuffix(key, ext); ok {
			return name
		}
	}
	return key
}

// parseForeign reads PEM, plain or as base64. Errors wrap store.ErrUnreadable and don't quote the value.
func parseForeign(key string, p *api.KVPair) (Foreign, error) {
	f := Foreign{Name: foreignName(key), Revision: revision(p)}
	err := store.ValidName(f.Name)
	if err == nil && len(p.Value) > store.MaxRecordBytes {
		err = fmt.Errorf("%d bytes, the limit is %d", len(p.Value), store.MaxRecordBytes)
	}
	if err == nil {
		f.Bundle, err = store.ParseBundle(plainPEM(p.Value))
	}
	if err != nil {
		return f, fmt.Errorf("%w %s/%s: %w", store.ErrUnreadable, kindForeign, key, err)
	}
	return f, nil
}

// plainPEM undoes base64, in whichever of its forms and lines, if it is that.
func plainPEM(value []byte) []byte {
	if strings.Contains(string(value), "-----BEGIN ") {
		return value
	}
	text := strings.Join(strings.Fields(string(value)), "")
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b
	}
	if b, err := base64.RawStdEncoding.DecodeString(text); err == nil {
		return b
	}
	return value
}

// Foreign reads the certificate of another tool. Two keys may have its name, with and without an ending: the better
// one counts. Errors wrap store.ErrAbsent or store.ErrUnreadable where they apply.
func (s *Store) Foreign(ctx context.Context, name string) (Foreign, error) {
	var best Foreign
	var bad []error
	for _, ext := range []string{"", ".crt", ".pem"} {
		p, _, err := s.c.get(ctx, s.keys.foreign()+name+ext, 0)
		if err != nil {
			return Foreign{}, fmt.Errorf("get %s/%s: %w", kindForeign, name, err)
		}
		if p == nil || p.Flags == classicFlag {
			continue
		}
		f, err := parseForeign(name+ext, p)
		if err != nil {
			bad = append(bad, err)
		} else if best.Bundle == nil || f.Bundle.Worse(best.Bundle, time.Now()) == nil {
			best = f
		}
	}
	switch {
	case best.Bundle != nil:
		return best, nil
	case len(bad) > 0:
		return Foreign{}, errors.Join(bad...)
	}
	return Foreign{}, fmt.Errorf("get %s/%s: %w", kindForeign, name, store.ErrAbsent)
}

// ListForeign reads all certificates of other tools, ordered by name; what can't be read is in unreadable.
func (s *Store) ListForeign(ctx context.Context) (found []Foreign, unreadable []error, err error) {
	pairs, _, err := s.c.list(ctx, s.keys.foreign(), 0)
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", kindForeign, err)
	}
	best := map[string]Foreign{}
	for _, p := range pairs {
		key := strings.TrimPrefix(p.Key, s.keys.foreign())
		if p.Flags == classicFlag {
			continue
		}
		f, err := parseForeign(key, p)
		if err != nil {
			unreadable = append(unreadable, err)
		} else if old, twice := best[f.Name]; !twice || f.Bundle.Worse(old.Bundle, time.Now()) == nil {
			best[f.Name] = f
		}
	}
	for _, name := range slices.Sorted(maps.Keys(best)) {
		found = append(found, best[name])
	}
	return found, unreadable, nil
}

// FollowForeign is Follow for the certificates of other tools: names is what changed, nil for all.
func (s *Store) FollowForeign(ctx context.Context, changed func(names []string)) error {
	var one sync.Mutex
	tell := func(names []string) {
		one.Lock()
		defer one.Unlock()
		changed(names)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.lookAlone(ctx, func() { tell(nil) }) })
	return s.Follow(ctx, func(keys []store.Key) {
		var names []string
		for _, k := range keys {
			names = append(names, foreignName(k.Name))
		}
		tell(slices.Compact(names))
	}, kindForeign)
}

// aloneEvery is how often a node looks whether there is a leader to tell it of other tools' certificates.
const aloneEvery = 20 * time.Second

// lookAlone calls changed when other tools' certificates may have changed while nobody leads, so that nobody tells of it through
// the feed: then every node looks for itself.
func (s *Store) lookAlone(ctx context.Context, changed func()) {
	var last uint64
	alone := false
	for sleep(ctx, aloneEvery+s.cfg.Jitter(aloneEvery/4)) {
		leader, err := s.Leader(ctx)
		if err != nil {
			continue
		}
		if leader != "" || !alone { // the next one may be about to begin
			alone, last = leader == "", 0
			continue
		}
		_, index, err := s.c.names(ctx, s.keys.foreign(), "", 0)
		if err != nil || index == last {
			continue
		}
		last = index
		changed()
	}
}

// foreignIndex is the value of manifest/certs: what the leader announced last, so that the next one knows what is new.
type foreignIndex struct {
	Version int               `json:"v"`
	Tags    map[string]string `json:"tags"`
}

func (s *Store) foreignManifest(ctx context.Context) (map[store.Key]string, error) {
	p, _, err := s.c.get(ctx, s.keys.dir("manifest")+string(kindForeign), 0)
	tags := map[store.Key]string{}
	if err != nil || p == nil {
		return tags, err
	}
	var index foreignIndex
	if json.Unmarshal(p.Value, &index) != nil {
		return tags, nil // the leader writes it anew
	}
	for name, t := range index.Tags {
		tags[store.Key{Kind: kindForeign, Name: name}] = t
	}
	return tags, nil
}

// classic makes the operation that keeps our copy of a certificate in the form that the classic pipeline reads, or, on the way back
// from Plain, that deletes it. A better certificate of another tool in its place is left alone.
func (s *Store) classic(ctx context.Context, name string, r store.Record) (api.TxnOps, error) {
	key := s.keys.foreign() + name
	old, _, err := s.c.get(ctx, key, 0)
	if err != nil {
		return nil, err
	}
	cert, ok := r.(*store.Certificate)
	ok = ok && s.cfg.Plain
	switch {
	case !ok && (old == nil || old.Flags != classicFlag):
		return nil, nil
	case !ok:
		return api.TxnOps{kvOp(api.KVDelete, key, nil, 0)}, nil
	}
	if old != nil && old.Flags != classicFlag {
		ours, err := cert.Bundle()
		theirs, theirErr := parseForeign(name, old)
		if err != nil || theirErr == nil && ours.Worse(theirs.Bundle, time.Now()) != nil {
			s.log.Warn("a certificate of another tool is better than ours and stays", "certificate", name)
			return nil, nil
		}
	}
	pem := append([]byte(cert.Chain), cert.Private.Reveal()...)
	op := kvOp(api.KVSet, key, []byte(base64.StdEncoding.EncodeToString(pem)), 0)
	op.KV.Flags = classicFlag
	return api.TxnOps{op}, nil
}
