package store

import (
	"encoding/json"
	"fmt"
)

const currentVersion = 1

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
		if len(sec.plain) == 0 {
			continue
		}
		sealed, err := s.Seal(key.Kind, key.Name, sec.plain)
		if err != nil {
			return nil, fmt.Errorf("encode %s: seal: %w", key, err)
		}
		*sec = Secret{sealed: sealed}
	}
	b, err := json.Marshal(c)
	if err == nil && len(c.header().unknown) > 0 {
		b, err = merge(b, c.header().unknown)
	}
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
		return nil, fmt.Errorf("%w %s: %w", ErrUnreadable, key, err)
	}
	return r, nil
}

func decode(key Key, b []byte, s Sealer) (Record, error) {
	if len(b) > MaxRecordBytes {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxRecordBytes)
	}
	r := newRecord(key.Kind)
	if r == nil {
		return nil, fmt.Errorf("unknown kind %q", key.Kind)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, jsonError(err)
	}
	if r.Key() != key {
		return nil, fmt.Errorf("it says that it is %s", r.Key())
	}
	if v := r.header().Version; v < 1 {
		return nil, fmt.Errorf("version %d", v)
	}
	unknown, err := unknownFields(b, r)
	if err != nil {
		return nil, err
	}
	r.header().unknown = unknown
	for _, sec := range r.secrets() {
		if sec.sealed == "" {
			continue
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

// jsonError keeps what is wrong and drops what was found there, which may be a secret.
func jsonError(err error) error {
	switch e := err.(type) {
	case *json.SyntaxError:
		return fmt.Errorf("not valid JSON at byte %d", e.Offset)
	case *json.UnmarshalTypeError:
		return fmt.Errorf("field %q should be a %s", e.Field, e.Type)
	}
	return fmt.Errorf("not a record")
}

// unknownFields returns the fields of b that r's own encoding does not know.
func unknownFields(b []byte, r Record) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, jsonError(err)
	}
	for _, f := range fieldNames(r) {
		delete(all, f)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// merge adds fields to an encoded object.
func merge(b []byte, extra map[string]json.RawMessage) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for k, v := range extra {
		if _, known := all[k]; !known {
			all[k] = v
		}
	}
	return json.Marshal(all)
}
