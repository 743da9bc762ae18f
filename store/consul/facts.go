package consul

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// fact is a certificate without chain and key. The record is shared by all who list, and never changed.
type fact struct {
	tag      string // of the stored value
	revision store.Revision
	record   *store.Certificate
}

// facts is what this process knows of what is issued, as of the last listing and of what was read since.
type facts struct {
	reading turn // one listing at a time: the second one finds what the first one fetched

	mu    sync.Mutex
	known map[string]fact // nil until the file was read
	news  bool            // there is something that the file does not have
}

// ListFacts is List without chains and keys. Of what is issued only that is fetched whose digest in the manifest is not
// known here, in small parts with pauses: 50 nodes that all lack 10,000 certificates leave Consul time for others.
func (s *Store) ListFacts(ctx context.Context, kind store.Kind) (store.Listing, error) {
	if kind == store.KindIssued {
		list, err := s.listIssued(ctx)
		if err != nil {
			return store.Listing{}, fmt.Errorf("list %s: %w", kind, err)
		}
		return list, nil
	}
	list, err := s.List(ctx, kind)
	for _, e := range list.Entries {
		store.DropPEM(e.Record)
	}
	return list, err
}

func (s *Store) listIssued(ctx context.Context) (store.Listing, error) {
	if err := s.facts.reading.take(ctx); err != nil {
		return store.Listing{}, err
	}
	defer s.facts.reading.give()
	s.facts.load(s)
	names, manifest, err := s.whatIsIssued(ctx)
	if err != nil {
		return store.Listing{}, err
	}
	entries := make(map[string]store.Entry, len(names))
	var missing []store.Key
	for _, name := range names {
		if e, ok := s.facts.get(name, manifest[name]); ok {
			entries[name] = e
		} else {
			missing = append(missing, store.Key{Kind: store.KindIssued, Name: name})
		}
	}
	unreadable, err := s.fetch(ctx, missing, func(e store.Entry) { entries[e.Key.Name] = e })
	if err != nil {
		return store.Listing{}, err
	}
	s.facts.keepOnly(entries)
	list := store.Listing{Unreadable: unreadable}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		list.Entries = append(list.Entries, entries[name])
	}
	return list, nil
}

// whatIsIssued returns the names that there are, and what the manifest says of them. With nobody leading the manifest may
// lack some.
func (s *Store) whatIsIssued(ctx context.Context) ([]string, map[string]Summary, error) {
	manifest, err := s.sharedManifest(ctx)
	if err != nil {
		return nil, nil, err
	}
	dir := s.keys.dir(string(store.KindIssued))
	keys, _, err := s.c.names(ctx, dir, "", 0)
	if err != nil {
		return nil, nil, err
	}
	if len(keys) == 0 { // to a token without rights Consul shows nothing, but it refuses a single key
		_, _, err = s.c.get(ctx, dir+sentinel, 0)
		return nil, manifest, err
	}
	var names []string
	for _, key := range keys {
		if name := strings.TrimPrefix(key, dir); name != sentinel && name != "" {
			names = append(names, name)
		}
	}
	return names, manifest, nil
}

// fetch reads certificates in parts, with pauses as long as what they took, and gives their facts to got.
func (s *Store) fetch(ctx context.Context, keys []store.Key, got func(store.Entry)) (unreadable []error, err error) {
	sealer, err := s.opener(ctx)
	if err != nil {
		return nil, err
	}
	for part := range slices.Chunk(keys, fetchAtOnce) {
		start := time.Now()
		pairs, err := s.getMany(ctx, part)
		if err != nil {
			return nil, err
		}
		for key, p := range pairs {
			e, err := checkedEntry(key, p, sealer)
			if err != nil {
				unreadable = append(unreadable, err)
				continue
			}
			cert := e.Record.(*store.Certificate)
			store.DropPEM(cert)
			s.facts.put(key.Name, fact{tag(p.Value), e.Revision, cert})
			got(e)
		}
		if len(keys) > fetchAtOnce {
			sleep(ctx, time.Since(start))
		}
	}
	return unreadable, nil
}

func checkedEntry(key store.Key, p *api.KVPair, sealer store.Sealer) (store.Entry, error) {
	if err := validKey(key); err != nil {
		return store.Entry{}, fmt.Errorf("%w %s: %w", store.ErrUnreadable, key, err)
	}
	return entry(key, p, sealer)
}

// get returns what is known of a certificate if that is what the manifest says.
func (f *facts) get(name string, sum Summary) (store.Entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.known[name]
	if !ok || k.tag != sum.Tag || k.record.Fingerprint != sum.Fingerprint {
		return store.Entry{}, false
	}
	return store.Entry{Key: k.record.Key(), Record: k.record, Revision: k.revision}, true
}

func (f *facts) put(name string, k fact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known != nil {
		f.known[name] = k
		f.news = true
	}
}

// read notes a certificate that was read whole.
func (f *facts) read(e store.Entry, p *api.KVPair) {
	c, ok := e.Record.(*store.Certificate)
	if !ok {
		return
	}
	short := *c
	store.DropPEM(&short)
	f.put(c.Name, fact{tag(p.Value), e.Revision, &short})
}

// keepOnly forgets what is not issued any more.
func (f *facts) keepOnly(entries map[string]store.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.known)
	maps.DeleteFunc(f.known, func(name string, _ fact) bool { _, there := entries[name]; return !there })
	f.news = f.news || len(f.known) < before
}
