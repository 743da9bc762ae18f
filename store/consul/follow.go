package consul

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// firstRead is how long Follow waits for Consul before the first call, which then comes with nothing known.
const firstRead = 2 * time.Second

// follow is one call of Follow.
type follow struct {
	s     *Store
	news  store.Feed
	kinds []store.Kind
	first sync.WaitGroup // one for every source that has not read yet
	late  chan struct{}  // closed when it is no longer waited for
	table tableWatch
}

// Follow implements store.Store. What is issued and wanted is told by the feed; the few records of the other kinds
// are watched themselves.
func (s *Store) Follow(ctx context.Context, changed func(keys []store.Key), kinds ...store.Kind) error {
	if len(kinds) == 0 {
		kinds = store.Kinds()
	}
	f := &follow{s: s, kinds: kinds, late: make(chan struct{})}
	return f.run(ctx, changed)
}

func (f *follow) run(ctx context.Context, changed func(keys []store.Key)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	start := func(source func(context.Context, func())) {
		f.first.Add(1)
		wg.Go(func() { source(ctx, sync.OnceFunc(f.first.Done)) })
	}
	if slices.ContainsFunc(f.kinds, inFeed) {
		start(f.watchFeed)
	}
	for _, k := range f.kinds {
		if !inFeed(k) {
			start(func(ctx context.Context, read func()) { f.watchRecords(ctx, k, read) })
		}
	}
	ready := make(chan struct{})
	wg.Go(func() { f.first.Wait(); close(ready) })
	wait := time.NewTimer(firstRead)
	defer wait.Stop()
	select {
	case <-ready:
	case <-wait.C:
	case <-ctx.Done():
	}
	close(f.late)
	return f.news.Follow(ctx, func(keys []store.Key) {
		f.table.handling(keys)
		f.s.prefetch(ctx, keys)
		changed(keys)
		f.table.handled(f.s)
	}, f.kinds...)
}

// hasRead is called after a source's first read: what it found counts as known, unless Follow did not wait for it.
func (f *follow) hasRead(done func()) {
	select {
	case <-f.late:
		f.news.Announce()
	default:
	}
	done()
}

// watchRecords tells of the records of one kind by watching them all.
func (f *follow) watchRecords(ctx context.Context, kind store.Kind, done func()) {
	defer done()
	if kind == store.KindChallenges {
		stop := f.s.member.followTable()
		defer stop()
	}
	dir := f.s.keys.dir(string(kind))
	var known map[string]string
	var pairs api.KVPairs
	var at uint64
	read := func(ctx context.Context, index uint64) (map[string]string, uint64, error) {
		if kind == store.KindChallenges {
			return f.s.readTable(ctx, &f.table, dir, index)
		}
		var err error
		pairs, at, err = f.s.c.list(ctx, dir, index)
		return revisions(pairs), at, err
	}
	most := calm
	if kind == store.KindAttempt || kind == store.KindOrder {
		most = calmProgress
	}
	watchCalmly(ctx, f.s.c, dir, most, read, func(now map[string]string) int {
		f.s.touch()
		keys := differences(kind, dir, known, now)
		switch {
		case known == nil:
			f.table.announced(f.s, kind, nil)
			f.hasRead(done)
		case len(keys) > 0:
			f.table.announced(f.s, kind, keys)
			f.s.just.put(dir, pairs, at, keys)
			f.news.Announce(keys...)
		}
		f.table.unchanged(f.s, kind)
		known = now
		return len(keys)
	})
}

func revisions(pairs api.KVPairs) map[string]string {
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		m[p.Key] = string(revision(p))
	}
	return m
}

// differences lists the records that two states of a prefix have differently.
func differences(kind store.Kind, dir string, old, now map[string]string) []store.Key {
	var keys []store.Key
	add := func(key string) {
		if name, ok := nameBelow(dir, key); ok {
			keys = append(keys, store.Key{Kind: kind, Name: name})
		}
	}
	for key, rev := range now {
		if old[key] != rev {
			add(key)
		}
	}
	for key := range old {
		if _, ok := now[key]; !ok {
			add(key)
		}
	}
	return keys
}

// watchFeed tells what the feed tells. When it can't tell, everything is compared over the manifest.
func (f *follow) watchFeed(ctx context.Context, done func()) {
	defer done()
	feed, leave := f.s.feed.join()
	defer leave()
	var known map[store.Key]string // tags; nil until they were read
	var last feedState
	for version := uint64(0); ; {
		state, v, ok := feed.next(ctx, version)
		if !ok {
			return
		}
		changes, chained := state.since(last.last())
		switch {
		case version == 0:
			known = f.survey(ctx)
			f.hasRead(done)
		case state.index == 0:
			f.news.Announce() // the feed is gone, perhaps with everything else
		case chained:
			f.tell(changes, known)
		default:
			known = f.compare(ctx, known)
		}
		version, last = v, state
	}
}

func (f *follow) tell(changes []changedKey, known map[store.Key]string) {
	for _, c := range changes {
		f.news.Announce(c.key)
		if c.tag != "" {
			known[c.key] = c.tag
		} else {
			delete(known, c.key)
		}
	}
}

// compare announces what differs from what is known, and what was told of but not found.
func (f *follow) compare(ctx context.Context, known map[store.Key]string) map[store.Key]string {
	sleep(ctx, f.s.cfg.Jitter(100*time.Millisecond)) // not all nodes at the same moment
	unmet := f.s.unmet()
	now := f.survey(ctx)
	var keys []store.Key
	for k, t := range now {
		if known[k] != t || unmet[k] {
			keys = append(keys, k)
		}
	}
	for k := range known {
		if _, ok := now[k]; !ok {
			keys = append(keys, k)
		}
	}
	if len(keys) > 0 {
		f.news.Announce(keys...)
	}
	return now
}

// survey reads the tags of everything that the feed tells of, again until it has them.
func (f *follow) survey(ctx context.Context) map[store.Key]string {
	tries, failing := f.s.c.newBackoff(), streak{c: f.s.c}
	for {
		tags, err := f.s.tags(ctx, f.kinds)
		if err == nil || ctx.Err() != nil {
			return tags
		}
		failing.failed("can't compare with Consul, trying again", err)
		sleep(ctx, tries.NextBackOff())
	}
}

// tags reads the tags of all records of the kinds that the feed tells of.
func (s *Store) tags(ctx context.Context, kinds []store.Kind) (map[store.Key]string, error) {
	tags := map[store.Key]string{}
	if slices.Contains(kinds, store.KindIssued) {
		names, err := s.sharedManifest(ctx)
		if err != nil {
			return tags, err
		}
		for name, sum := range names {
			tags[store.Key{Kind: store.KindIssued, Name: name}] = sum.Tag
		}
	}
	if slices.Contains(kinds, kindForeign) {
		names, err := s.foreignManifest(ctx)
		if err != nil {
			return tags, err
		}
		maps.Copy(tags, names)
	}
	if slices.Contains(kinds, store.KindWanted) {
		dir := s.keys.dir(string(store.KindWanted))
		pairs, err := s.listWanted(ctx)
		if err != nil {
			return tags, err
		}
		for _, p := range pairs {
			tags[store.Key{Kind: store.KindWanted, Name: strings.TrimPrefix(p.Key, dir)}] = tag(p.Value)
		}
	}
	return tags, nil
}
