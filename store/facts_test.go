package store

import (
	"reflect"
	"testing"
)

// What is kept of a certificate beside its chain and key comes back whole, the fields of newer versions too.
func TestFacts(t *testing.T) {
	key := Key{KindIssued, "shop"}
	b := []byte(`{"v":1,"name":"shop","domains":["shop.example.com"],"serial":"1f","fingerprint":"00","not_before":"2026-01-01T00:00:00Z",
		"not_after":"2026-04-01T00:00:00Z","issued_at":"2026-01-01T00:00:01Z","ca":"https://ca.example/dir","tomorrow":{"a":[1]}}`)
	want, err := DecodeFacts(key, b)
	if err != nil {
		t.Fatal(err)
	}
	full := want.clone().(*Certificate)
	full.Chain, full.Private = "chain", NewSecret([]byte("key"))
	b, err = EncodeFacts(full)
	if err != nil || full.Chain == "" || full.Private.Empty() {
		t.Fatal(err, "or the record was changed")
	}
	got, err := DecodeFacts(key, b)
	if err != nil || !reflect.DeepEqual(got, want) || len(got.header().unknown) != 1 {
		t.Errorf("%+v, want %+v: %v", got, want, err)
	}
	for name, bad := range map[string]Key{"another name": {KindIssued, "other"}, "no kind": {"nothing", "shop"}} {
		if _, err := DecodeFacts(bad, b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
