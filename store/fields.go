package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// unmarshal reads JSON into the struct that v points to and returns the fields that v does not know.
func unmarshal(b []byte, v any) (unknown map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(b, v); err != nil {
		return nil, jsonError(err)
	}
	known := fieldNames(reflect.TypeOf(v).Elem())
	eachField(b, func(name string, value []byte) {
		if slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) }) {
			return
		}
		if unknown == nil {
			unknown = map[string]json.RawMessage{}
		}
		unknown[name] = bytes.Clone(value)
	})
	return unknown, nil
}

// eachField calls f for every field of a JSON object, which must be valid.
func eachField(b []byte, f func(name string, value []byte)) {
	const space = " \t\r\n"
	b = bytes.TrimLeft(b, space)
	if len(b) == 0 || b[0] != '{' {
		return
	}
	for b = bytes.TrimLeft(b[1:], space); b[0] == '"'; b = bytes.TrimLeft(b, space+",") {
		n := stringEnd(b)
		name := string(b[1 : n-1])
		if strings.Contains(name, `\`) {
			_ = json.Unmarshal(b[:n], &name)
		}
		b = bytes.TrimLeft(b[n:], space+":")
		n = valueEnd(b)
		f(name, bytes.TrimRight(b[:n], space))
		b = b[n:]
	}
}

// stringEnd returns the length of the JSON string that b begins with.
func stringEnd(b []byte) int {
	for i := 1; ; i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// valueEnd returns the length of the JSON value, a member of an object, that b begins with.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch b[i] {
		case '"':
			i += stringEnd(b[i:]) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
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
