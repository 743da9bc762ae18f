package issuer

import (
	"crypto/x509"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spoacme/spoacme/store"
)

func TestNames(t *testing.T) {
	long := "https://" + strings.Repeat("a-very-long-label.", 10) + "example:14000/acme/directory?x=1"
	for _, directory := range []string{"https://acme-v02.api.letsencrypt.org/directory", "https://127.0.0.1:14000/dir", long, "§"} {
		for _, id := range []string{CAID(directory), AccountID(CA{Directory: directory}), AccountID(CA{Directory: directory, EABKeyID: "k/1"})} {
			if err := store.ValidName(id); err != nil {
				t.Error(err)
			}
		}
	}
	if CAID("https://ca.example/a") == CAID("https://ca.example/b") {
		t.Error("two directories of one host share a name")
	}
}

func TestSettings(t *testing.T) {
	good := CA{Directory: "https://ca.example/directory"}
	for want, cas := range map[string][]CA{
		"configure the issuer: no CA; name one, for example letsencrypt":                                                 nil,
		`configure the issuer: CA "http://ca.example/": use the https:// URL of its directory`:                           {{Directory: "http://ca.example/"}},
		`configure the issuer: CA "letsencrypt": use the https:// URL of its directory`:                                  {{Directory: "letsencrypt"}},
		"configure the issuer: CA https://ca.example/directory: external account binding needs both key id and HMAC key": {{Directory: good.Directory, EABKeyID: "x"}},
		"configure the issuer: CA https://ca.example/directory: named twice":                                             {good, good},
	} {
		s := Settings{CAs: cas}
		if err := s.validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestAccountLost(t *testing.T) {
	lost := func(b *bench) store.Key {
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		b.stop()
		key := store.Key{Kind: store.KindAccount, Name: AccountID(b.cfg.CAs[0])}
		if b.store.Raw(key) == nil {
			b.t.Fatal("no account is stored")
		}
		b.store.Edit(key, nil)
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		return key
	}
	bubble(t, "lost", func(t *testing.T, b *bench) {
		key := lost(b)
		b.start()
		b.settle(time.Second)
		want := "account " + key.Name + " is not in the store, but certificate shop of https://ca.example/directory is: restore the store, or start the sidecar once with --new-account"
		if a := read[*store.Attempt](b, store.KindAttempt, "blog"); a == nil || a.Error != want {
			t.Errorf("got %+v, want %s", a, want)
		}
		if b.ca.total(accounts) != 1 {
			t.Errorf("%d accounts", b.ca.total(accounts))
		}
	})
	bubble(t, "lost, and a new one allowed while running", func(t *testing.T, b *bench) {
		lost(b)
		i, err := New(b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		b.run(i)
		b.settle(time.Second)
		s := b.cfg.Settings
		s.NewAccount = true
		if err := i.Reconfigure(s); err != nil {
			t.Fatal(err)
		}
		b.settle(time.Second)
		if b.ca.total(accounts) != 2 || b.count(store.KindIssued) != 2 {
			t.Errorf("%d accounts, %d issued", b.ca.total(accounts), b.count(store.KindIssued))
		}
	})
}

func TestAccountChanges(t *testing.T) {
	bubble(t, "unknown to the CA", func(t *testing.T, b *bench) {
		b.cfg.NewAccount = true
		forgotten := true
		b.ca.intercept = func(r *request) *http.Response {
			if r.op == "account" {
				forgotten = false
			}
			if r.op == "order" && forgotten {
				return problem(400, "accountDoesNotExist", "Account not found")
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		forgotten = true
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.settle(time.Second)
		if b.count(store.KindIssued) != 2 || b.ca.total(accounts) != 1 {
			t.Errorf("%d issued, %d accounts: the same key is to be registered again", b.count(store.KindIssued), b.ca.total(accounts))
		}
	})
	bubble(t, "unknown to the CA, with an order in flight", func(t *testing.T, b *bench) {
		b.cfg.NewAccount = true
		forgotten := false
		b.ca.intercept = func(r *request) *http.Response {
			switch r.op {
			case "challenge":
				forgotten = forgotten || b.ca.total(orders) == 1
			case "account":
				forgotten = false
			}
			if forgotten && r.op != "directory" && r.op != "nonce" {
				return problem(400, "accountDoesNotExist", "Account not found")
			}
			return nil
		}
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Hour)
		if b.count(store.KindIssued) != 1 || b.ca.total(orders) != 2 {
			t.Errorf("%d issued with %d orders", b.count(store.KindIssued), b.ca.total(orders))
		}
		b.clean()
	})
	bubble(t, "external binding", func(t *testing.T, b *bench) {
		b.ca.eab = true
		b.cfg.CAs[0].EABKeyID, b.cfg.CAs[0].EABKey = "kid-1", "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ"
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		if b.count(store.KindIssued) != 1 {
			t.Error("not issued")
		}
	})
	bubble(t, "the address changes", func(t *testing.T, b *bench) {
		b.demand("shop=shop.example.com")
		b.start()
		b.settle(time.Second)
		b.stop()
		b.cfg.Email = "ops@example.com"
		b.demand("shop=shop.example.com", "blog=blog.example.com")
		b.start()
		b.settle(time.Second)
		a := read[*store.Account](b, store.KindAccount, AccountID(b.cfg.CAs[0]))
		if a == nil || a.Email != "ops@example.com" || b.ca.total(accounts) != 1 || b.count(store.KindIssued) != 2 {
			t.Errorf("account %+v, %d at the CA", a, b.ca.total(accounts))
		}
	})
}

// The example of RFC 9773 section 4.1.
func TestARIID(t *testing.T) {
	m := newModel(t)
	m.ca.SubjectKeyId = []byte{0x69, 0x88, 0x5b, 0x6b, 0x87, 0x46, 0x40, 0x41, 0xe1, 0xb3, 0x7b, 0x84, 0x7b, 0xa0, 0xae, 0x2c, 0xde, 0x01, 0xc8, 0xd4}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(0x87654321), NotAfter: time.Now().Add(time.Hour)}
	if got := ariID(chainPEM(m.sign(leaf, m.ca, m.key.Public(), m.key))); got != "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE" {
		t.Error(got)
	}
}

func TestKeys(t *testing.T) {
	for _, kind := range []string{"", "ec256", "ec384", "rsa2048", "rsa3072"} {
		key, err := newKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newCSR(store.NewSecret(key), []string{"shop.example.com"}); err != nil {
			t.Error(err)
		}
	}
	want := `draw key: type "ec256+rsa2048": use one of ec256, ec384, rsa2048, rsa3072 and rsa4096`
	if _, err := newKey("ec256+rsa2048"); err == nil || err.Error() != want {
		t.Error(err)
	}
	if _, err := newCSR(store.NewSecret([]byte("sesame")), nil); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Error(err)
	}
}
