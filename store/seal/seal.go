// Package seal seals private keys before they leave the process: AES-256-GCM by Tink keysets, each text bound to the
// fleet and to the record that it belongs to.
//
// There are two keysets. "fleet" seals certificates and is on all nodes; "issuer" seals accounts and open orders and is
// only on those that may lead. It gives no protection against putting back an older record.
package seal

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/spoacme/spoacme/store"
)

// Why a text can't be opened or made.
var (
	// ErrNoKey means that this process lacks the key of a text.
	ErrNoKey = errors.New("sealed with a key that is not here: copy the fleet's keysets to this node")
	// ErrBroken means that a text was changed, or belongs to another fleet or record.
	ErrBroken = errors.New("the sealed text is damaged or belongs to another record or fleet")
)

// scheme is what a sealed text begins with.
const scheme = "tink1:"

// Keys is the keysets of one process. It may be used by many goroutines.
type Keys struct {
	fleet  *ring
	issuer *ring // nil on an edge
}

// ring is one keyset, ready to use.
type ring struct {
	mark    string // what its ids begin with
	open    tink.AEAD
	seal    map[uint32]tink.AEAD // by key
	primary uint32
	ids     []uint32
}

// Marks of key ids.
const (
	fleetMark  = "f"
	issuerMark = "i"
)

// IssuerKey reports whether a key id is of the issuer keyset.
func IssuerKey(id string) bool { return strings.HasPrefix(id, issuerMark) }

// Load reads keysets as New and its relatives wrote them. issuer is empty on an edge. Errors don't quote the input.
func Load(fleet, issuer []byte) (*Keys, error) {
	k := new(Keys)
	var err error
	if k.fleet, err = newRing(fleetMark, fleet); err != nil {
		return nil, fmt.Errorf("load the fleet keyset: %w", err)
	}
	if len(issuer) == 0 {
		return k, nil
	}
	if k.issuer, err = newRing(issuerMark, issuer); err != nil {
		return nil, fmt.Errorf("load the issuer keyset: %w", err)
	}
	return k, nil
}

func newRing(mark string, text []byte) (*ring, error) {
	h, err := read(text)
	if err != nil {
		return nil, err
	}
	r := &ring{mark: mark, seal: map[uint32]tink.AEAD{}}
	if r.open, err = aead.New(h); err != nil {
		return nil, errors.New("not a keyset for sealing")
	}
	for i := range h.Len() {
		e, err := h.Entry(i)
		if err != nil {
			return nil, errors.New("not a keyset for sealing")
		}
		if e.KeyStatus() != keyset.Enabled {
			continue
		}
		if e.IsPrimary() {
			r.primary = e.KeyID()
		}
		r.ids = append(r.ids, e.KeyID())
		if r.seal[e.KeyID()], err = with(h, e.KeyID()); err != nil {
			return nil, errors.New("not a keyset for sealing")
		}
	}
	return r, nil
}

// with returns what seals with one certain key of a keyset.
func with(h *keyset.Handle, id uint32) (tink.AEAD, error) {
	m := keyset.NewManagerFromHandle(h)
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	one, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return aead.New(one)
}

func (r *ring) id(n uint32) string { return fmt.Sprintf("%s%08x", r.mark, n) }

// IDs names all keys that can be used here: a letter for the keyset and eight hex digits.
func (k *Keys) IDs() []string {
	var ids []string
	for _, r := range []*ring{k.fleet, k.issuer} {
		if r == nil {
			continue
		}
		for _, n := range r.ids {
			ids = append(ids, r.id(n))
		}
	}
	return ids
}

// Words says an id as `spoacme keygen` takes it: the keyset's usual file and the key's number.
func Words(id string) string {
	file := "fleet.json"
	if IssuerKey(id) {
		file = "issuer.json"
	}
	n, _ := strconv.ParseUint(id[1:], 16, 32) //nolint:errcheck // made by id
	return fmt.Sprintf("%s %d", file, n)
}

// ring is the keyset for a kind of record.
func (k *Keys) ring(kind store.Kind) (*ring, error) {
	if kind != store.KindAccount && kind != store.KindOrder {
		return k.fleet, nil
	}
	if k.issuer == nil {
		return nil, ErrNoKey
	}
	return k.issuer, nil
}

// choose returns the key to seal with: the primary one if it is usable, else the newest that is. With none usable it
// is the primary one: a node without keys must not keep a fleet from working.
func (r *ring) choose(usable func(id string) bool) uint32 {
	if usable == nil || usable(r.id(r.primary)) {
		return r.primary
	}
	for i := len(r.ids) - 1; i >= 0; i-- {
		if usable(r.id(r.ids[i])) {
			return r.ids[i]
		}
	}
	return r.primary
}

// Sealer seals for a fleet with keys that usable allows (nil: the primary ones) and opens with any. With an empty
// fleet it can do neither.
func (k *Keys) Sealer(fleet string, usable func(id string) bool) store.Sealer {
	return sealer{k, fleet, usable}
}

type sealer struct {
	keys   *Keys
	fleet  string
	usable func(string) bool
}

var errNoFleet = errors.New("the fleet's id is not known yet: it has had no leader so far")

func (s sealer) bound(kind store.Kind, name string) []byte {
	return []byte("spoacme/1|" + s.fleet + "|" + string(kind) + "|" + name)
}

// Seal implements store.Sealer.
func (s sealer) Seal(kind store.Kind, name string, plain []byte) (string, error) {
	if s.fleet == "" {
		return "", errNoFleet
	}
	r, err := s.keys.ring(kind)
	if err != nil {
		return "", err
	}
	b, err := r.seal[r.choose(s.usable)].Encrypt(plain, s.bound(kind, name))
	if err != nil {
		return "", errors.New("seal: Tink refused")
	}
	return scheme + base64.RawStdEncoding.EncodeToString(b), nil
}

// Open implements store.Sealer. Its errors are ErrNoKey and ErrBroken, and one for an unknown fleet.
func (s sealer) Open(kind store.Kind, name string, text string) ([]byte, error) {
	if s.fleet == "" {
		return nil, errNoFleet
	}
	r, err := s.keys.ring(kind)
	if err != nil {
		return nil, err
	}
	if !IsSealed(text) {
		return nil, errPlain
	}
	n, b, err := parse(text)
	if err != nil {
		return nil, err
	}
	if r.seal[n] == nil {
		return nil, ErrNoKey
	}
	plain, err := r.open.Decrypt(b, s.bound(kind, name))
	if err != nil {
		return nil, ErrBroken
	}
	return plain, nil
}

// errPlain is for what nobody sealed: it may have been put there by whoever can write to the store.
var errPlain = fmt.Errorf("%w: it is not sealed at all; where the fleet was set to plain before, set SPOACME_SEAL=from-plain until the "+
	"leader has sealed everything", ErrBroken)

// IsSealed reports whether a text was made by Seal.
func IsSealed(text string) bool { return strings.HasPrefix(text, scheme) }

// parse returns the number of the key that a text was sealed with, and what Tink made.
func parse(text string) (uint32, []byte, error) {
	enc, ok := strings.CutPrefix(text, scheme)
	b, err := base64.RawStdEncoding.DecodeString(enc)
	// Tink's output begins with a version byte, 1, and the key's number.
	if !ok || err != nil || len(b) < 5 || b[0] != 1 {
		return 0, nil, ErrBroken
	}
	return binary.BigEndian.Uint32(b[1:5]), b, nil
}

// KeyOf returns the id of the key that a text was sealed with, "" if that can't be told.
func (k *Keys) KeyOf(kind store.Kind, text string) string {
	r, err := k.ring(kind)
	if err != nil {
		return ""
	}
	n, _, err := parse(text)
	if err != nil {
		return ""
	}
	return r.id(n)
}

// Current returns the id of the key that would seal records of a kind now, "" if there is none.
func (k *Keys) Current(kind store.Kind, usable func(id string) bool) string {
	r, err := k.ring(kind)
	if err != nil {
		return ""
	}
	return r.id(r.choose(usable))
}

// Former reports whether a key is older than the one that its keyset seals with. A newer one waits to be promoted.
func (k *Keys) Former(id string) bool {
	for _, r := range []*ring{k.fleet, k.issuer} {
		for at := 0; r != nil && r.ids[at] != r.primary; at++ {
			if r.id(r.ids[at]) == id {
				return true
			}
		}
	}
	return false
}
