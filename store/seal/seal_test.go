package seal

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/store"
)

func fresh(t *testing.T) []byte {
	t.Helper()
	k, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func load(t *testing.T, fleet, issuer []byte) *Keys {
	t.Helper()
	k, err := Load(fleet, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var secret = []byte("hush-hush")

func TestBoundToRecordAndFleet(t *testing.T) {
	k := load(t, fresh(t), fresh(t))
	s := k.Sealer("fleet1", nil)
	text, err := s.Seal(store.KindIssued, "shop", secret)
	if err != nil || strings.Contains(text, "hush") || !IsSealed(text) {
		t.Fatal(text, err)
	}
	if b, err := s.Open(store.KindIssued, "shop", text); err != nil || !bytes.Equal(b, secret) {
		t.Fatal(err)
	}
	for name, open := range map[string]func() ([]byte, error){
		"another name":  func() ([]byte, error) { return s.Open(store.KindIssued, "mail", text) },
		"another fleet": func() ([]byte, error) { return k.Sealer("fleet2", nil).Open(store.KindIssued, "shop", text) },
		"damaged":       func() ([]byte, error) { return s.Open(store.KindIssued, "shop", text[:len(text)-2]+"AA") },
		"short":         func() ([]byte, error) { return s.Open(store.KindIssued, "shop", "tink1:AQ") },
		"plain":         func() ([]byte, error) { return s.Open(store.KindIssued, "shop", "hush-hush") },
		"empty":         func() ([]byte, error) { return s.Open(store.KindIssued, "shop", "") },
	} {
		if b, err := open(); !errors.Is(err, ErrBroken) || b != nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := load(t, fresh(t), nil).Sealer("fleet1", nil).Open(store.KindIssued, "shop", text); !errors.Is(err, ErrNoKey) {
		t.Errorf("with another keyset: %v", err)
	}
	if _, err := k.Sealer("", nil).Seal(store.KindIssued, "shop", secret); err == nil {
		t.Error("sealed for no fleet")
	}
}

func TestEdgeHasNoIssuerKeys(t *testing.T) {
	fleet, issuer := fresh(t), fresh(t)
	edge := load(t, fleet, nil)
	text, err := load(t, fleet, issuer).Sealer("f", nil).Seal(store.KindAccount, "main", secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := edge.Sealer("f", nil).Open(store.KindAccount, "main", text); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if _, err := edge.Sealer("f", nil).Seal(store.KindOrder, "main", secret); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if ids := edge.IDs(); len(ids) != 1 || IssuerKey(ids[0]) {
		t.Error(ids)
	}
	if ids := load(t, fleet, issuer).IDs(); len(ids) != 2 || !IssuerKey(ids[1]) {
		t.Error(ids)
	}
}

func TestRotation(t *testing.T) {
	one := fresh(t)
	two, id, err := Add(one)
	if err != nil {
		t.Fatal(err)
	}
	before := load(t, two, nil)
	old, err := before.Sealer("f", nil).Seal(store.KindIssued, "shop", secret)
	if err != nil {
		t.Fatal(err)
	}
	three, err := Promote(two, id)
	if err != nil {
		t.Fatal(err)
	}
	after := load(t, three, nil)
	ids := after.IDs()
	if before.KeyOf(store.KindIssued, old) != ids[0] || after.Current(store.KindIssued, nil) != ids[1] || after.Former(ids[1]) || !after.Former(ids[0]) {
		t.Error("the promoted key does not seal")
	}
	onlyOld := func(id string) bool { return id == ids[0] }
	if after.Current(store.KindIssued, onlyOld) != ids[0] {
		t.Error("a key that not all have seals")
	}
	if after.Current(store.KindIssued, func(string) bool { return false }) != ids[1] {
		t.Error("with no usable key the primary one should seal")
	}
	if b, err := after.Sealer("f", nil).Open(store.KindIssued, "shop", old); err != nil || !bytes.Equal(b, secret) {
		t.Error(err)
	}
	if _, err := Drop(three, id); err == nil {
		t.Error("the key that seals was dropped")
	}
	var first uint32
	for n := range after.fleet.seal {
		if n != id {
			first = n
		}
	}
	four, err := Drop(three, first)
	if err != nil {
		t.Fatal(err)
	}
	if ids := load(t, four, nil).IDs(); len(ids) != 1 || slices.Contains(ids, before.IDs()[0]) {
		t.Error(ids)
	}
}

// Only what another key has succeeded may go: not the one that seals, and not one that waits to be promoted.
func TestFormer(t *testing.T) {
	one := fresh(t)
	two, id, err := Add(one)
	if err != nil {
		t.Fatal(err)
	}
	promoted, err := Promote(two, id)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text []byte
		want []bool
	}{"one": {one, []bool{false}}, "added": {two, []bool{false, false}}, "promoted": {promoted, []bool{true, false}}} {
		k := load(t, c.text, fresh(t))
		for i, want := range c.want {
			if got := k.Former(k.IDs()[i]); got != want {
				t.Errorf("%s: key %d: %t", name, i, got)
			}
		}
	}
}

func TestWords(t *testing.T) {
	for id, want := range map[string]string{"ffffffff0": "fleet.json 4294967280", "i0000001f": "issuer.json 31"} {
		if got := Words(id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
}

func TestBadKeysets(t *testing.T) {
	for _, text := range []string{"", "{", "hush-hush", `{"primaryKeyId":1,"key":[]}`} {
		for _, use := range []func() error{
			func() error { _, err := Load([]byte(text), nil); return err },
			func() error { _, _, err := Add([]byte(text)); return err },
			func() error { _, err := Promote([]byte(text), 1); return err },
			func() error { _, err := Drop([]byte(text), 1); return err },
		} {
			if err := use(); err == nil || strings.Contains(err.Error(), "hush") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
}
