package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/check"
	"github.com/spoacme/spoacme/dataplane"
)

const probeWithin = 10 * time.Second

// challenge sends one through HAProxy's HTTP frontend: of a token that the sidecar published for it, or of an unknown one.
func (e *examiner) challenge(ctx context.Context) {
	f := &e.facts
	address := f.Settings.HTTPFrontend
	if address == "" && f.Config != nil && f.HAProxy.Err == nil {
		address = f.Config.HTTPFrontend()
	}
	if address == "" || f.HAProxy.Err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	c := &check.Challenge{Address: address}
	f.Challenge = c
	p := probe{Token: "spoacme-check-" + rand.Text()}
	if f.Sidecar.Running {
		published, end, err := newClient(f.Sidecar.Control).publish(ctx)
		if err != nil {
			c.Err = fmt.Errorf("publish a token: %w", err)
			return
		}
		defer end()
		p = published
	}
	c.Expected = p.KeyAuth
	host := "spoacme-check.invalid"
	for _, name := range slices.Sorted(maps.Keys(f.Settings.Certificates)) {
		if d := f.Settings.Certificates[name].Domains[0]; d[0] != '*' {
			host = d
			break
		}
	}
	askChallenge(ctx, c, host, p.Token)
}

// publish has the sidecar answer a token until end is called.
func (c *client) publish(ctx context.Context) (p probe, end func(), err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://spoacme/probe", strings.NewReader("{}"))
	if err != nil {
		return p, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return p, nil, c.explain(err)
	}
	end = func() { _ = resp.Body.Close() } // hanging up is all that is meant
	if resp.StatusCode != http.StatusOK {
		end()
		return p, nil, fmt.Errorf("the sidecar answered %s: use a spoacme of the same version", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		end()
		return p, nil, fmt.Errorf("read the sidecar's answer: %w", err)
	}
	return p, end, nil
}

func askChallenge(ctx context.Context, c *check.Challenge, host, token string) {
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Address+"/.well-known/acme-challenge/"+token, nil)
	if err != nil {
		c.Err = err
		return
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		c.Err = reason(err)
		return
	}
	defer resp.Body.Close()
	const enough = 512
	body, err := io.ReadAll(io.LimitReader(resp.Body, enough))
	if err != nil {
		c.Err = reason(err)
		return
	}
	c.Status, c.Body, c.Location = resp.StatusCode, string(body), resp.Header.Get("Location")
}

// reason leaves out the URL, which the finding names.
func reason(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}

const handshakesAtOnce = 8

// handshakes asks HAProxy's TLS address for every certificate that should be there.
func (e *examiner) handshakes(ctx context.Context) {
	f := &e.facts
	if f.Settings.Probe == "" || f.HAProxy.Err != nil {
		return
	}
	names := slices.Sorted(maps.Keys(f.Settings.Certificates))
	f.Handshakes = make([]check.Handshake, len(names))
	g := new(errgroup.Group)
	g.SetLimit(handshakesAtOnce)
	for i, name := range names {
		h := &f.Handshakes[i]
		h.Certificate, h.Address = name, f.Settings.Probe
		h.Name = strings.Replace(f.Settings.Certificates[name].Domains[0], "*", "spoacme-check", 1)
		h.Want = e.stored(name)
		if h.Want != "" {
			g.Go(func() error { shake(ctx, h); return nil })
		}
	}
	_ = g.Wait() // none of them fails
}

// stored is the fingerprint of what the store has, as the sidecar says, else of what lies on disk for HAProxy.
func (e *examiner) stored(name string) string {
	if e.view != nil {
		if c, ok := e.view.Certificate(name); ok && c.Stored != nil {
			return c.Stored.Fingerprint
		}
		return ""
	}
	text, err := os.ReadFile(dataplane.Place{CrtDir: e.facts.Place.CrtDir}.File(name))
	if err != nil {
		return ""
	}
	return dataplane.LeafFingerprint(text)
}

func shake(ctx context.Context, h *check.Handshake) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	// The fingerprint is what is compared; who signed it is no question here.
	d := tls.Dialer{Config: &tls.Config{ServerName: h.Name, InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", h.Address)
	if err != nil {
		h.Err = err
		return
	}
	defer conn.Close()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	h.Got = fmt.Sprintf("%X", sha1.Sum(bytes.Clone(leaf.Raw)))
}
