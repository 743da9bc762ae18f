package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// Secret is bytes that leave the process only through a Sealer. Whatever prints, logs or marshals
// it by accident shows a placeholder.
type Secret struct {
	plain  []byte
	sealed string
}

const hidden = "[secret]"

// NewSecret wraps b, which the Secret then owns.
func NewSecret(b []byte) Secret { return Secret{plain: b} }

// Reveal returns the bytes. They must not be changed.
func (s Secret) Reveal() []byte { return s.plain }

// Empty reports whether there is nothing in it.
func (s Secret) Empty() bool { return len(s.plain) == 0 && s.sealed == "" }

// String returns a placeholder.
func (s Secret) String() string { return hidden }

// Format prints a placeholder whatever the verb: %x and %d too.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalJSON writes the sealed form, or a placeholder when there is none.
func (s Secret) MarshalJSON() ([]byte, error) {
	if s.sealed != "" {
		return json.Marshal(s.sealed)
	}
	if len(s.plain) == 0 {
		return []byte(`""`), nil
	}
	return json.Marshal(hidden)
}

// UnmarshalJSON reads the sealed form; Decode opens it.
func (s *Secret) UnmarshalJSON(b []byte) error {
	s.plain = nil
	return json.Unmarshal(b, &s.sealed)
}

// Sealer turns secrets into text that may be stored and back. kind and name bind the text to its record.
type Sealer interface {
	Seal(kind Kind, name string, plain []byte) (sealed string, err error)
	Open(kind Kind, name string, sealed string) (plain []byte, err error)
}

// Plain stores secrets as they are: for a store that is a private directory.
type Plain struct{}

// Seal returns the text of plain.
func (Plain) Seal(_ Kind, _ string, plain []byte) (string, error) {
	if !utf8.Valid(plain) {
		return "", errors.New("it is not text")
	}
	return string(plain), nil
}

// Open returns the bytes of sealed.
func (Plain) Open(_ Kind, _ string, sealed string) ([]byte, error) { return []byte(sealed), nil }
