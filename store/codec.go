package store

import (
	"errors"
	"fmt"
)

const currentVersion = 1

var errPlaceholder = errors.New("a placeholder stands where a key should be")

// newRecord returns an empty record of a kind, nil when the kind is unknown.
func newRecord(k Kind) Record {
	switch k {
	case KindWanted:
		return new(Wanted)
	case KindIssued:
		return new(Certificate)
	case KindOrder:
		return new(Order)
	case KindAttempt:
		return new(Attempt)
	case KindBudget:
		return new(Budget)
	case KindAccount:
		return new(Account)
	case KindChallenges:
		return new(Challenges)
	case KindDemand:
		return new(Demand)
	case KindRequest:
		return new(Request)
	}
	return nil
}

// Encode writes a record as JSON, its secrets sealed. r itself is not changed. What is invalid or larger than
// MaxRecordBytes is refused.
func Encode(r Record, s Sealer) ([]byte, error) {
	key := r.Key()
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("encode %s: %w", key, err)
	}
	c := r.clone()
	if c.header().Version == 0 {
		c.header().Version = currentVersion
	}
	for _, sec := range c.secrets() {
		if sec.sealed == hidden {
			return nil, fmt.Errorf("encode %s: %w", key, errPlaceholder)
		}
		if len(sec.plain) == 0 {
			continue
		}
		sealed, err := s.Seal(key.Kind, key.Name, sec.plain)
		if err == nil && (sealed == "" || sealed == hidden) {
			err = errors.New("nothing came of it")
		}
		if err != nil {
			return nil, fmt.Errorf("encode %s: seal: %w", key, err)
		}
		*sec = Secret{sealed: sealed}
	}
	b, err := marshal(c, c.header().unknown)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", key, err)
	}
	if len(b) > MaxRecordBytes {
		return nil, fmt.Errorf("encode %s: %d bytes, the limit is %d", key, len(b), MaxRecordBytes)
	}
	return b, nil
}

// Decode reads a record that Encode wrote, of this version or another. Its errors wrap ErrUnreadable and
// never quote the bytes.
func Decode(key Key, b []byte, s Sealer) (Record, error) {
	r, err := decode(key, b, s)
	if err != nil {
		return nil, &UnreadableError{Key: key, Err: err}
	}
	return r, nil
}

// UnreadableError is an ErrUnreadable that says which record it is about.
type UnreadableError struct {
	Key Key
	Err error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("%v %s: %v", ErrUnreadable, e.Key, e.Err)
}
func (e *UnreadableError) Unwrap() []error { return []error{ErrUnreadable, e.Err} }

func decode(key Key, b []byte, s Sealer) (Record, error) {
	if len(b) > MaxRecordBytes {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxRecordBytes)
	}
	r := newRecord(key.Kind)
	if r == nil {
		return nil, fmt.Errorf("unknown kind %q", key.Kind)
	}
	unknown, err := unmarshal(b, r)
	if err != nil {
		return nil, err
	}
	if r.Key() != key {
		return nil, fmt.Errorf("it says that it is %.200q", r.Key())
	}
	if v := r.header().Version; v < 1 {
		return nil, fmt.Errorf("version %d", v)
	}
	r.header().unknown = unknown
	for _, sec := range r.secrets() {
		if sec.sealed == "" {
			continue
		}
		if sec.sealed == hidden {
			return nil, errPlaceholder
		}
		plain, err := s.Open(key.Kind, key.Name, sec.sealed)
		if err != nil {
			return nil, fmt.Errorf("open the sealed key: %w", err)
		}
		*sec = Secret{plain: plain}
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return r, nil
}
