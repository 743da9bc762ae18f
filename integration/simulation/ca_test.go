package simulation

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// authority is the model of a CA: it keeps the rules of RFC 8555, and never forgets what it was made to do.
type authority struct {
	w        *world
	accounts []string // JWK
	orders   []*order
	life     time.Duration // of its certificates
	down     bool
	finals   int // orders that were finalized with success
}

// order is an order at the CA.
type order struct {
	number   int
	name     string // of the certificate that it is for
	domains  []string
	by       string // process that placed it
	status   string
	expires  time.Time
	tokens   []string
	answered []bool
	verdicts []string // "" while there is none, "valid", or why not
	cert     *issued  // once it was finalized
	ready    time.Time
	forgot   bool
	asked    int

	recorded time.Time // when its URL came into the store; zero while it has not
	kept     bool      // its certificate came into the store
}

// issued is a certificate that the CA signed.
type issued struct {
	order               *order
	serial              int
	at                  time.Time
	notBefore, notAfter time.Time
	chain               []byte
}

func (o *order) url() string { return fmt.Sprintf("https://ca.example/get/%d", o.number) }

// place makes an order. w.mu is held.
func (ca *authority) place(by string, domains []string) *order {
	n := len(ca.orders)
	life := 7 * 24 * time.Hour
	if ca.w.chaos.shortOrders {
		life = time.Minute + ca.w.dice.span(10*time.Minute, "order life", n)
	}
	o := &order{
		number: n, by: by, name: nameOf(domains[0]), domains: domains, status: "pending", expires: time.Now().Add(life).Truncate(time.Second), // as it is told
		answered: make([]bool, len(domains)), verdicts: make([]string, len(domains)),
	}
	for i := range domains {
		o.tokens = append(o.tokens, fmt.Sprintf("token-%d-%d", n, i))
	}
	ca.w.seePlaced(o)
	ca.orders = append(ca.orders, o)
	ca.w.trace.add("CA: order %d of %s for %v", n, by, domains)
	return o
}

// nameOf is the certificate that a domain belongs to: c1 of www.c1.example.
func nameOf(domain string) string {
	labels := strings.Split(domain, ".")
	return labels[len(labels)-2]
}

// move lets time pass over an order. w.mu is held.
func (ca *authority) move(o *order) {
	valid := 0
	for _, v := range o.verdicts {
		if v == "valid" {
			valid++
		} else if v != "" && o.status == "pending" {
			o.status = "invalid"
		}
	}
	if o.status == "pending" && valid == len(o.domains) {
		o.status = "ready"
	}
	if (o.status == "pending" || o.status == "ready") && time.Now().After(o.expires) {
		o.status = "invalid"
	}
	if o.status == "processing" && !time.Now().Before(o.ready) {
		o.status = "valid"
		if o.cert == nil {
			o.status = "invalid"
		}
	}
}

// dead reports whether nothing can come of an order any more. w.mu is held.
func (ca *authority) dead(o *order) bool {
	ca.move(o)
	return o.status == "invalid" || o.forgot
}

// told is a challenge that the CA is to look at. It does so a little later. w.mu is held.
func (ca *authority) told(o *order, i int) {
	w := ca.w
	o.answered[i] = true
	about := fmt.Sprintf("validation %d", o.number)
	most := time.Second
	if w.chaos.slowCA {
		most = 20 * time.Second
	}
	time.AfterFunc(w.dice.span(most, about, i), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		o.verdicts[i] = "valid"
		if w.faulty(authorization, about+" refused", i) {
			o.verdicts[i] = "the CA could not reach it"
		}
		for k := range 3 { // places that it asks from
			if got := w.ask(o.tokens[i], int(w.dice.roll(100, about+" place", 3*i+k))); !strings.HasPrefix(got, o.tokens[i]+".") {
				o.verdicts[i] = "no answer: " + got
			}
		}
		if o.verdicts[i] != "valid" {
			w.count.refusedNames++
		}
		w.trace.add("CA: %s of order %d: %s", o.domains[i], o.number, o.verdicts[i])
		ca.move(o)
	})
}

// finalize takes a certificate request for an order that is ready. w.mu is held.
func (ca *authority) finalize(o *order, csr *x509.CertificateRequest) {
	w := ca.w
	about := "processing"
	o.status = "processing"
	o.ready = time.Now().Add(w.dice.span(3*time.Second, about, o.number))
	if w.chaos.slowCA {
		o.ready = o.ready.Add(w.dice.span(time.Minute, about+" long", o.number))
	}
	if w.faulty(processing, about+" fails", o.number) {
		w.trace.add("CA: order %d will fail", o.number)
		return
	}
	ca.finals++
	c := &issued{order: o, serial: ca.finals, at: time.Now(), notBefore: time.Now().Truncate(time.Second).Add(-10 * time.Second)}
	c.notAfter = c.notBefore.Add(ca.life)
	c.chain = sign(c, csr)
	w.trace.add("CA: order %d: certificate %d", o.number, c.serial)
	w.seeIssue(c)
	o.cert = c
}

// signer is the one CA certificate of all runs. Of all keys a short one of RSA has the cheapest signatures to verify, which is done
// whenever a certificate is read.
type signer struct {
	key         crypto.Signer
	certificate *x509.Certificate
}

var theSigner = newSigner()

func newSigner() signer {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Model CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		panic(err)
	}
	root, err = x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return signer{key, root}
}

func sign(c *issued, csr *x509.CertificateRequest) []byte {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(int64(c.serial)), NotBefore: c.notBefore, NotAfter: c.notAfter, DNSNames: c.order.domains,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, theSigner.certificate, csr.PublicKey, theSigner.key)
	if err != nil {
		panic(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: theSigner.certificate.Raw})...)
}
