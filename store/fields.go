package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// unmarshal reads JSON into the struct that v points to and returns the fields that v does not know.
func unmarshal(b []byte, v any) (unknown map[string]json.RawMessage, err error) {
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if strict.Decode(v) == nil {
		if _, err := strict.Token(); errors.Is(err, io.EOF) {
			return nil, nil
		}
	}
	reflect.ValueOf(v).Elem().SetZero()
	if err := json.Unmarshal(b, v); err != nil {
		return nil, jsonError(err)
	}
	if err := json.Unmarshal(b, &unknown); err != nil {
		return nil, jsonError(err)
	}
	for _, known := range fieldNames(reflect.TypeOf(v).Elem()) {
		for name := range unknown {
			if strings.EqualFold(name, known) {
				delete(unknown, name)
			}
		}
	}
	return unknown, nil
}

// marshal writes v, a struct or a pointer to one, as JSON, and the unknown fields with it.
func marshal(v any, unknown map[string]json.RawMessage) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil || len(unknown) == 0 {
		return b, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for name, value := range unknown {
		if _, known := all[name]; !known {
			all[name] = value
		}
	}
	return json.Marshal(all)
}

// fieldNames returns the JSON names of a struct's fields, those of embedded structs too.
func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			names = append(names, fieldNames(f.Type)...)
		} else if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != "" {
			names = append(names, tag)
		}
	}
	return names
}

// jsonError keeps what is wrong and drops what was found there, which may be a secret.
func jsonError(err error) error {
	switch e := err.(type) {
	case *json.SyntaxError:
		return fmt.Errorf("not valid JSON at byte %d", e.Offset)
	case *json.UnmarshalTypeError:
		if e.Field == "" {
			return errors.New("not a JSON object")
		}
		return fmt.Errorf("field %q should be a %s", e.Field, e.Type)
	}
	return errors.New("a field does not fit")
}

// bareSpec is Spec without its methods.
type bareSpec Spec

// MarshalJSON implements json.Marshaler: the fields of newer versions survive.
func (s Spec) MarshalJSON() ([]byte, error) { return marshal(bareSpec(s), s.unknown) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *Spec) UnmarshalJSON(b []byte) error {
	var bare bareSpec
	unknown, err := unmarshal(b, &bare)
	if err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	*s = Spec(bare)
	s.unknown = unknown
	return nil
}
