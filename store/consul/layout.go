package consul

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/consul/api"

	"github.com/spoacme/spoacme/store"
)

// sentinel keeps a prefix from being empty: a watch on an empty prefix wakes at every write of others. No record can
// have its name.
const sentinel = ".keep"

// shards is how many parts the manifest has.
const shards = 64

// kindForeign is what the feed calls the certificates of other tools.
const kindForeign store.Kind = "certs"

// layout names the keys below one prefix.
type layout struct{ prefix string }

func (l layout) meta() string               { return l.prefix + "/meta" }
func (l layout) leader() string             { return l.prefix + "/leader" }
func (l layout) fence() string              { return l.prefix + "/fence" }
func (l layout) question() string           { return l.prefix + "/question" }
func (l layout) feed() string               { return l.prefix + "/feed" }
func (l layout) dir(kind string) string     { return l.prefix + "/" + kind + "/" }
func (l layout) record(k store.Key) string  { return l.prefix + "/" + k.String() }
func (l layout) manifest(shard byte) string { return fmt.Sprintf("%s/manifest/%02x", l.prefix, shard) }
func (l layout) acks() string               { return l.dir("ack") }
func (l layout) ack(node string) string     { return l.acks() + node }
func (l layout) served(node string) string  { return l.dir("nodes") + node + "/served" }
func (l layout) offers(node string) string  { return l.dir("nodes") + node + "/offer/" }
func (l layout) foreign() string            { return l.dir(string(kindForeign)) }

// sentinels are the keys that keep watched prefixes from being empty.
func (l layout) sentinels() []string {
	dirs := []string{l.acks(), l.dir("nodes"), l.dir("manifest"), l.foreign()}
	for _, k := range store.Kinds() {
		dirs = append(dirs, l.dir(string(k)))
	}
	for i := range dirs {
		dirs[i] += sentinel
	}
	return append(dirs, l.question()) // a node's watch of it would else wake at every write
}

// shardOf tells which part of the manifest a certificate is in.
func shardOf(name string) byte {
	sum := sha256.Sum256([]byte(name))
	return sum[0] & (shards - 1)
}

// tag is a short digest of a stored value, to tell two values apart.
func tag(value []byte) string {
	h := fnv.New32a()
	h.Write(value) //nolint:errcheck // a hash never fails
	return fmt.Sprintf("%08x", h.Sum32())
}

// revision is index and digest: after a restore an index may come again with another value.
func revision(p *api.KVPair) store.Revision {
	return store.Revision(strconv.FormatUint(p.ModifyIndex, 10) + "-" + tag(p.Value))
}

// indexOf is the index in a revision that is not zero.
func indexOf(r store.Revision) (uint64, error) {
	n, _, ok := strings.Cut(string(r), "-")
	index, err := strconv.ParseUint(n, 10, 64)
	if err != nil || !ok || index == 0 {
		return 0, errors.New("the revision is not of this store")
	}
	return index, nil
}

// randomID returns n random bytes in hex.
func randomID(n int) string {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // never fails
	return hex.EncodeToString(b)
}

// keptID returns the random id that a file of dir holds, after making it if need be. With no dir it is a new one.
func keptID(dir, name string) (string, error) {
	if dir == "" {
		return randomID(8), nil
	}
	file := filepath.Join(dir, name)
	b, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == 16 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the id of this installation: %w", err)
	}
	id := randomID(8)
	return id, keep(dir, name, id)
}

// keep writes a small file into dir, which need not exist.
func keep(dir, name, text string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep the %s id: %w", name, err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep the %s id: %w", name, err)
	}
	return nil
}
