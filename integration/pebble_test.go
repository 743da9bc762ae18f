package integration

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/spoacme/spoacme/integration/fixture"
)

// ordinaryClient is an ACME client that has nothing to do with the product. It answers challenges on a port of its own.
type ordinaryClient struct {
	pebble  *fixture.Pebble
	answers *http.ServeMux
}

func clientKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue obtains a certificate for the name, with a new account.
func (o *ordinaryClient) issue(t *testing.T, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	https, err := o.pebble.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer https.CloseIdleConnections()
	client := &acme.Client{Key: clientKey(t), HTTPClient: https, DirectoryURL: o.pebble.Directory()}
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil {
		return err
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		return err
	}
	for _, url := range order.AuthzURLs {
		if err := o.authorize(ctx, client, url); err != nil {
			return err
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, clientKey(t))
	if err != nil {
		return err
	}
	ready, err := client.WaitOrder(ctx, order.URI)
	if err != nil {
		return err
	}
	// This client looks for the order's address in the answer, where Pebble does not repeat it.
	_, _, unfinished := client.CreateOrderCert(ctx, ready.FinalizeURL, csr, true)
	done, err := client.WaitOrder(ctx, order.URI)
	if err != nil {
		return errors.Join(unfinished, err)
	}
	_, err = client.FetchCert(ctx, done.CertURL, true)
	return err
}

// authorize answers the http-01 challenge of one name.
func (o *ordinaryClient) authorize(ctx context.Context, client *acme.Client, url string) error {
	z, err := client.GetAuthorization(ctx, url)
	if err != nil {
		return err
	}
	for _, challenge := range z.Challenges {
		if challenge.Type != "http-01" {
			continue
		}
		answer, err := client.HTTP01ChallengeResponse(challenge.Token)
		if err != nil {
			return err
		}
		o.answers.HandleFunc(client.HTTP01ChallengePath(challenge.Token), func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(answer))
		})
		if _, err := client.Accept(ctx, challenge); err != nil {
			return err
		}
	}
	_, err = client.WaitAuthorization(ctx, url)
	return err
}

// The fixture counts what an ordinary ACME client does.
func TestPebbleFixture(t *testing.T) {
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	pebble := fixture.StartPebble(t, fixture.PebbleOptions{HTTPPort: server.Listener.Addr().(*net.TCPAddr).Port})
	client := &ordinaryClient{pebble, mux}
	issue := func(name string) error { return client.issue(t, name) }
	counts := func(orders, issued, asked int) {
		t.Helper()
		if len(pebble.Orders()) != orders || len(pebble.Issued()) != issued || len(pebble.Asked()) < asked {
			t.Errorf("orders %v, issued %v, asked %v; want %d, %d and at least %d",
				pebble.Orders(), pebble.Issued(), pebble.Asked(), orders, issued, asked)
		}
	}

	if err := issue("one.example.com"); err != nil {
		t.Fatal(err)
	}
	counts(1, 1, 1)
	before, err := pebble.Management(t.Context(), "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	if err := pebble.Restart(); err != nil {
		t.Fatal(err)
	}
	after, err := pebble.Management(t.Context(), "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == string(after) {
		t.Error("the root survived a restart")
	}
	if err := issue("two.example.com"); err != nil {
		t.Fatal(err)
	}
	counts(2, 2, 2)
	if err := pebble.SetDNS(t.Context(), "three.example.com"); err != nil {
		t.Fatal(err)
	}
	if issue("three.example.com") == nil {
		t.Error("a name that does not resolve was certified")
	}
	counts(3, 2, 2)
	if strings.Contains(strings.Join(pebble.Asked(), " "), "three.example.com/") {
		t.Errorf("asked %v", pebble.Asked())
	}
}
