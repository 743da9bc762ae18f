package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
	"github.com/spoacme/spoacme/store/storetest"
)

// sealer is a Sealer that shows what it was given.
type sealer struct{}

func (sealer) Seal(k store.Kind, name string, plain []byte) (string, error) {
	return fmt.Sprintf("sealed:%s:%s:%s", k, name, strings.ToUpper(string(plain))), nil
}

func (sealer) Open(k store.Kind, name string, sealed string) ([]byte, error) {
	plain, ok := strings.CutPrefix(sealed, fmt.Sprintf("sealed:%s:%s:", k, name))
	if !ok {
		return nil, errors.New("wrong key")
	}
	return []byte(strings.ToLower(plain)), nil
}

func TestRoundTrip(t *testing.T) {
	for _, s := range []store.Sealer{store.Plain{}, sealer{}} {
		for _, r := range storetest.Records("shop") {
			b, err := store.Encode(r, s)
			if err != nil {
				t.Errorf("%s: %v", r.Key(), err)
				continue
			}
			back, err := store.Decode(r.Key(), b, s)
			if err != nil {
				t.Errorf("%s: %v", r.Key(), err)
				continue
			}
			again, err := store.Encode(back, s)
			if err != nil || string(again) != string(b) {
				t.Errorf("%s: %v\n%s\n%s", r.Key(), err, b, again)
			}
		}
	}
}

func TestEncodeLeavesTheRecordAlone(t *testing.T) {
	r := &store.Account{ID: "main", CA: "https://ca.example/d", Private: store.NewSecret([]byte("key"))}
	if _, err := store.Encode(r, sealer{}); err != nil {
		t.Fatal(err)
	}
	if string(r.Private.Reveal()) != "key" || r.Version != 0 {
		t.Error("the record was changed")
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	in := `{"v":7,"name":"shop","NAME":"shop","spec":{"domains":["a.example"],"shiny":[1,2]},"generation":1,"newer":{"a":"<b>"}}`
	key := store.Key{Kind: store.KindWanted, Name: "shop"}
	r, err := store.Decode(key, []byte(in), store.Plain{})
	if err != nil {
		t.Fatal(err)
	}
	r.(*store.Wanted).Generation = 2
	b, err := store.Encode(r, store.Plain{})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"generation":2,"name":"shop","newer":{"a":"\u003cb\u003e"},"spec":{"domains":["a.example"],"shiny":[1,2]},"v":7}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

func TestDecodeErrors(t *testing.T) {
	const account = `{"v":1,"id":"main","ca":"https://ca.example/d","private":`
	for in, want := range map[string]string{
		``:                                  "not valid JSON at byte 0",
		`{"v":1`:                            "not valid JSON at byte 6",
		`null`:                              `it says that it is "account/"`,
		`[]`:                                "not a JSON object",
		account + `"k"} x`:                  "not valid JSON at byte 63",
		account + `7}`:                      `field "private" should be a string`,
		account + `"[secret]"}`:             "a placeholder stands where a key should be",
		account + `""}`:                     "private is missing",
		account + `null}`:                   "private is missing",
		account + `"k","url":5}`:            `field "url" should be a string`,
		account + `"k","registered":"KEY"}`: "a field does not fit",
		`{"v":0,"id":"main"}`:               "version 0",
		`{"v":1,"id":"else"}`:               `it says that it is "account/else"`,
		`"` + strings.Repeat("k", 300<<10):  "307201 bytes, the limit is 307200",
	} {
		_, err := store.Decode(store.Key{Kind: store.KindAccount, Name: "main"}, []byte(in), store.Plain{})
		if !errors.Is(err, store.ErrUnreadable) || err.Error() != "unreadable record account/main: "+want {
			t.Errorf("%.60q: %v, want %s", in, err, want)
		}
	}
	_, err := store.Decode(store.Key{Kind: "odd", Name: "x"}, []byte(`{}`), store.Plain{})
	if text(err) != `unreadable record odd/x: unknown kind "odd"` {
		t.Error(err)
	}
	_, err = store.Decode(store.Key{Kind: store.KindAccount, Name: "main"}, []byte(account+`"k"}`), sealer{})
	if text(err) != "unreadable record account/main: open the sealed key: wrong key" {
		t.Error(err)
	}
}

func TestEncodeErrors(t *testing.T) {
	account := func(private string) *store.Account {
		return &store.Account{ID: "main", CA: "https://ca.example/d", Private: store.NewSecret([]byte(private))}
	}
	marshalled, err := json.Marshal(account("key"))
	if err != nil {
		t.Fatal(err)
	}
	var lost store.Account
	if err := json.Unmarshal(marshalled, &lost); err != nil {
		t.Fatal(err)
	}
	big := &store.Demand{Node: "n", Since: now, Certificates: map[string]store.Spec{}}
	for i := range 100 {
		var domains []string
		for j := range 100 {
			domains = append(domains, fmt.Sprintf("host%d.a-rather-long-name.example", j))
		}
		big.Certificates[fmt.Sprint("c", i)] = store.Spec{Domains: domains}
	}
	for _, c := range []struct {
		r    store.Record
		want string
	}{
		{account(""), "encode account/main: private is missing"},
		{account("\xff"), "encode account/main: seal: it is not text"},
		{account("[secret]"), "encode account/main: seal: nothing came of it"},
		{&lost, "encode account/main: a placeholder stands where a key should be"},
		{big, "encode demand/n: 361056 bytes, the limit is 307200"},
	} {
		if _, err := store.Encode(c.r, store.Plain{}); text(err) != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	r := &store.Order{Name: "shop", Private: store.NewSecret([]byte("hush"))}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	shown := string(b)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		shown += fmt.Sprintf(verb, r.Private) + fmt.Sprintf(verb, r) + fmt.Sprintf(verb, &r.Private)
	}
	for _, s := range []string{"hush", "68757368", "104 117", "h u s h", "0x68"} {
		if strings.Contains(shown, s) {
			t.Errorf("%q in %s", s, shown)
		}
	}
}

func TestRecordsOfAnEarlierVersion(t *testing.T) {
	stored := `{"v":1,"name":"shop","ca":"https://ca.example/d","failures":2,"tried":"2026-06-01T12:00:00Z","next":"2026-06-01T13:00:00Z","error":"no"}`
	r, err := store.Decode(store.Key{Kind: store.KindAttempt, Name: "shop"}, []byte(stored), store.Plain{})
	want := &store.Attempt{Meta: store.Meta{Version: 1}, Name: "shop", CA: "https://ca.example/d", Failures: 2, Tried: now,
		Next: now.Add(time.Hour), Error: "no"}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%v %+v", err, r)
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range storetest.Records("shop") {
		b, err := store.Encode(r, store.Plain{})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(r.Key().Kind), b)
	}
	f.Fuzz(func(t *testing.T, kind string, in []byte) {
		key := store.Key{Kind: store.Kind(kind), Name: "shop"}
		r, err := store.Decode(key, in, store.Plain{})
		if err != nil {
			if !errors.Is(err, store.ErrUnreadable) {
				t.Errorf("not ErrUnreadable: %v", err)
			}
			return
		}
		b, err := store.Encode(r, store.Plain{})
		if err != nil {
			if len(in) < store.MaxRecordBytes/8 { // escaping can make it larger
				t.Errorf("what was read can't be written: %v", err)
			}
			return
		}
		again, err := store.Decode(key, b, store.Plain{})
		if err != nil {
			t.Fatalf("what was written can't be read: %v", err)
		}
		if c, err := store.Encode(again, store.Plain{}); err != nil || string(b) != string(c) {
			t.Errorf("%v: written twice\n%s\n%s", err, b, c)
		}
	})
}
