package seal

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

// A keyset is kept as Tink's JSON in a file that only its owner may read. It is rotated in three steps, each carried
// to every node before the next: Add a key, Promote it, and once everything is sealed anew, Drop the old one.

// New makes a keyset with one key.
func New() ([]byte, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("make a keyset: %w", err)
	}
	return write(h)
}

// Add returns the keyset with one key more, which opens but does not seal yet, and its number.
func Add(text []byte) ([]byte, uint32, error) {
	h, err := read(text)
	if err != nil {
		return nil, 0, err
	}
	m := keyset.NewManagerFromHandle(h)
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, 0, fmt.Errorf("add a key: %w", err)
	}
	out, err := rewrite(m)
	return out, id, err
}

// Promote returns the keyset with another key to seal with.
func Promote(text []byte, id uint32) ([]byte, error) {
	return change(text, func(m *keyset.Manager) error { return m.SetPrimary(id) })
}

// Drop returns the keyset without a key. The one that seals can't be dropped.
func Drop(text []byte, id uint32) ([]byte, error) {
	return change(text, func(m *keyset.Manager) error { return m.Delete(id) })
}

func change(text []byte, how func(*keyset.Manager) error) ([]byte, error) {
	h, err := read(text)
	if err != nil {
		return nil, err
	}
	m := keyset.NewManagerFromHandle(h)
	if err := how(m); err != nil {
		return nil, fmt.Errorf("change the keyset: %w", err)
	}
	return rewrite(m)
}

func rewrite(m *keyset.Manager) ([]byte, error) {
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("change the keyset: %w", err)
	}
	return write(h)
}

func write(h *keyset.Handle) ([]byte, error) {
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b)); err != nil {
		return nil, fmt.Errorf("write the keyset: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// read does not pass on Tink's errors, which might quote what was read.
func read(text []byte) (*keyset.Handle, error) {
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		return nil, errors.New("not a Tink keyset in JSON: make one with 'spoacme keygen'")
	}
	return h, nil
}
