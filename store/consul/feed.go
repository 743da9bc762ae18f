package consul

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// maxFeedBytes is how long the feed may be. Every node reads it at every change.
const maxFeedBytes = 6 << 10

// inFeed reports whether changes of a kind are told by the feed. Followers of the others watch the records themselves,
// of which there are few.
func inFeed(k store.Kind) bool {
	return k == store.KindIssued || k == store.KindWanted || k == kindForeign
}

// feedRecord is the value of feed: the last changes, so that a follower who is a little behind fetches just those.
type feedRecord struct {
	Version int `json:"v"`
	// Epoch is drawn anew in every term. What a node acked under another one does not count.
	Epoch   string       `json:"epoch"`
	Seq     uint64       `json:"seq"`
	Changes []feedChange `json:"changes"` // oldest first, never empty
}

// feedChange is one transaction. ID tells it from another one with the same number, after a restore.
type feedChange struct {
	Seq  uint64   `json:"s"`
	ID   string   `json:"i"`
	Keys []string `json:"k,omitempty"` // "kind/name tag", no tag for what was deleted
}

// feedState is the feed as it was read; the zero feedState when there is none.
type feedState struct {
	feedRecord
	index uint64
}

// changedKey is a key in the feed with the tag of its new value.
type changedKey struct {
	key store.Key
	tag string
}

func (k changedKey) String() string {
	if k.tag == "" {
		return k.key.String()
	}
	return k.key.String() + " " + k.tag
}

func parseChanged(s string) (changedKey, bool) {
	full, tag, _ := strings.Cut(s, " ")
	kind, name, ok := strings.Cut(full, "/")
	return changedKey{store.Key{Kind: store.Kind(kind), Name: name}, tag}, ok
}

func parseFeed(p *api.KVPair) (feedState, error) {
	if p == nil {
		return feedState{}, nil
	}
	f := feedState{index: p.ModifyIndex}
	if err := json.Unmarshal(p.Value, &f.feedRecord); err != nil || f.Epoch == "" || len(f.Changes) == 0 {
		return feedState{}, errors.New("the feed is not readable")
	}
	return f, nil
}

// next returns the feed with one change more, and without the oldest ones that don't fit.
func (f feedRecord) next(id string, keys []changedKey) feedRecord {
	f.Version = 1
	f.Seq++
	change := feedChange{Seq: f.Seq, ID: id}
	for _, k := range keys {
		change.Keys = append(change.Keys, k.String())
	}
	f.Changes = append(slices.Clone(f.Changes), change)
	for len(f.Changes) > 1 && len(f.encode()) > maxFeedBytes {
		f.Changes = f.Changes[1:]
	}
	return f
}

func (f feedRecord) encode() []byte {
	b, _ := json.Marshal(f) //nolint:errcheck // strings and numbers only
	return b
}

// last is the newest change.
func (f feedRecord) last() feedChange {
	if len(f.Changes) == 0 {
		return feedChange{}
	}
	return f.Changes[len(f.Changes)-1]
}

// since returns what changed after a change that the reader knows, newest value last. It reports false when that
// can't be told: the reader is too far behind, or the feed is of another history.
func (f feedRecord) since(known feedChange) ([]changedKey, bool) {
	at := slices.IndexFunc(f.Changes, func(c feedChange) bool { return c.Seq == known.Seq && c.ID == known.ID })
	if at < 0 {
		return nil, false
	}
	var keys []changedKey
	for _, c := range f.Changes[at+1:] {
		for _, text := range c.Keys {
			if k, ok := parseChanged(text); ok {
				keys = append(keys, k)
			}
		}
	}
	return keys, true
}

// watchFeed runs the watch that everything in this process shares.
func (s *Store) watchFeed(ctx context.Context, publish func(feedState)) {
	var last feedState
	var began uint64
	first, broken := true, false
	read := func(ctx context.Context, index uint64) (*api.KVPair, uint64, error) {
		began = s.feedIndex()
		return s.c.get(ctx, s.keys.feed(), index)
	}
	watchCalmly(ctx, s.c, "the feed", calmFeed, read, func(p *api.KVPair) int {
		s.touch()
		f, err := parseFeed(p)
		if known := s.feedIndex(); known != began && f.index < known {
			return 0 // this process has written a newer one since the read began: it is not the store that went back
		}
		if err != nil && !broken {
			s.log.Error("feed in Consul ignored; the leader's next term writes it anew", "err", err)
		}
		broken = err != nil
		if !first && f.index == last.index && f.last().ID == last.last().ID {
			return 0
		}
		news := 1
		if f.Epoch == last.Epoch && f.Seq > last.Seq {
			news = int(min(f.Seq-last.Seq, 1000))
		}
		first, last = false, f
		s.observe(f)
		publish(f)
		return news
	})
}

// observe remembers what a feed says about the fleet.
func (s *Store) observe(f feedState) {
	s.seen.mu.Lock()
	if f.Seq < s.seen.seq {
		s.seen.jumped = time.Now()
	}
	if f.Epoch != s.seen.epoch && f.Epoch != "" {
		s.seen.epoch = f.Epoch
		s.seen.fleet = "" // read it again: the leader of a new term may have written it
		s.seen.floor = nil
	}
	if s.seen.floor == nil {
		s.seen.floor = map[store.Key]uint64{}
	}
	s.seen.seq, s.seen.index = f.Seq, f.index
	s.hear(f)
	for _, text := range f.last().Keys {
		if k, ok := parseChanged(text); ok {
			s.seen.floor[k.key] = f.index
		}
	}
	if len(s.seen.floor) > 10_000 {
		clear(s.seen.floor)
	}
	s.seen.mu.Unlock()
	s.past.saw(f.Epoch, f.Seq)
	s.member.poke()
}

// epoch returns the epoch of the feed that was seen last.
func (s *Store) epoch() string {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.epoch
}

// floor returns the least index at which key may be read.
func (s *Store) floor(key store.Key) uint64 {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return s.seen.floor[key]
}

// touch notes that Consul answered.
func (s *Store) touch() {
	s.seen.mu.Lock()
	s.seen.contact = time.Now()
	s.seen.mu.Unlock()
}

// Summary is what the manifest says of an issued certificate.
type Summary struct {
	Fingerprint string    `json:"f"` // SHA-1 of the leaf, upper-case hex
	NotAfter    time.Time `json:"n"`
	Tag         string    `json:"t"` // digest of the record
}

// shard is the value of one manifest key: a 64th of the names.
type shard struct {
	Version int                `json:"v"`
	Names   map[string]Summary `json:"names"`
}

func (m shard) encode() []byte {
	m.Version = 1
	b, _ := json.Marshal(m) //nolint:errcheck // strings and times only
	return b
}

// Manifest returns what is issued, without reading the certificates.
func (s *Store) Manifest(ctx context.Context) (map[string]Summary, error) {
	parts, err := s.manifest(ctx)
	if err != nil {
		return nil, err
	}
	return joined(parts), nil
}

func joined(parts map[byte]shard) map[string]Summary {
	all := map[string]Summary{}
	for _, part := range parts {
		maps.Copy(all, part.Names)
	}
	return all
}

// manifest reads the parts that are there. What can't be read is as good as absent: the leader writes it anew.
func (s *Store) manifest(ctx context.Context) (map[byte]shard, error) {
	pairs, _, err := s.c.list(ctx, s.keys.dir("manifest"), 0)
	if err != nil {
		return nil, err
	}
	return s.parseManifest(pairs), nil
}

func (s *Store) parseManifest(pairs api.KVPairs) map[byte]shard {
	parts := map[byte]shard{}
	for i := range byte(shards) {
		at := slices.IndexFunc(pairs, func(p *api.KVPair) bool { return p.Key == s.keys.manifest(i) })
		var part shard
		if at >= 0 && json.Unmarshal(pairs[at].Value, &part) == nil {
			parts[i] = part
		}
	}
	return parts
}
