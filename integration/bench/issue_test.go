package bench

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spoacme/spoacme/integration/fixture"
)

// wish is a certificate that somebody asks for.
type wish struct {
	name    string
	domains []string
}

// client is something that gets certificates from an authority into a HAProxy of its own.
type client interface {
	// ask asks for certificates: it returns when they are asked for, or when all are there.
	ask(ctx context.Context, wishes []wish) error
	// address is that of HAProxy's HTTPS frontend.
	address() string
}

// startAuthority starts Pebble as it is by default towards its clients: Retry-After of 3 s for an authorization and 5 s for an
// order. It asks the HAProxy's port 80.
func startAuthority(b testing.TB, h *fixture.HAProxy) *fixture.Pebble {
	return fixture.StartPebble(b, fixture.PebbleOptions{
		HTTPPort: h.HTTP.Number, AuthzRetryAfter: 3 * time.Second, OrderRetryAfter: 5 * time.Second,
	})
}

// scene is one number that the figures are about.
type scene struct {
	what         string
	certificates int
	domains      int // of each
	target       string
	rounds       map[string]int // other than usual, by contender; 0: not at all
}

// roundsOf returns how many samples are taken of a contender.
func (s scene) roundsOf(contender string) int {
	if n, other := s.rounds[contender]; other {
		return min(n, *rounds)
	}
	return *rounds
}

func scenes() []scene {
	return []scene{
		{"1 certificate", 1, 1, "≤ 1.2 s", nil},
		{"20 certificates", 20, 1, "≤ 2 s", map[string]int{"lego": 1}},
		{"200 certificates", 200, 1, "≤ 5 s", map[string]int{"lego": 0}},
		{"1 certificate with 100 names", 1, 100, "≤ 2 s", map[string]int{"lego": 0, "haproxy-acme": 0}},
	}
}

// BenchmarkIssue measures from "please issue" until a TLS client is given every certificate.
func BenchmarkIssue(b *testing.B) {
	const ours = "spoacme"
	all := []struct {
		by    string
		start func(testing.TB) client
	}{
		{ours, func(b testing.TB) client { return startSpoacme(b) }},
		{"lego", func(b testing.TB) client { return startLego(b) }},
		{"haproxy-acme", func(b testing.TB) client { return startNative(b, scenes()) }},
	}
	s := &sheet{title: "From \"please issue\" to served by HAProxy 3.2"}
	for _, contender := range all {
		during(b, func(b *scope) {
			c := contender.start(b)
			// The first certificate is not measured: with it the account is made.
			if _, err := issued(b.Context(), c, wishesOf("first", 0, 1, 1)); err != nil {
				b.Fatal(contender.by, err)
			}
			for i, sc := range scenes() {
				target := ""
				if contender.by == ours {
					target = sc.target
				}
				f := s.figure(sc.what, contender.by, "s", target)
				for round := range sc.roundsOf(contender.by) {
					took, err := issued(b.Context(), c, wishesOf(fmt.Sprint("s", i), round, sc.certificates, sc.domains))
					if err != nil {
						b.Fatalf("%s, %s: %v", contender.by, sc.what, err)
					}
					f.add(took.Seconds())
				}
			}
		})
	}
	s.note("spoacme: one certificate by the command `spoacme issue`; many by as many requests at once to its control socket, which is what the command sends. At most 50 orders are in flight. " +
		"lego: its command for one certificate after the other, a reload of HAProxy after each; 200 certificates and 100 names are left out, because it waits for a Retry-After with each name. 100 names are left out of haproxy-acme, because HAProxy 3.2.26 aborts: the order that Pebble answers with is longer than its buffer. " +
		"haproxy-acme: the certificates are in the configuration already, `acme renew` for each. Every client has its account already.")
	s.print(b)
}

// wishesOf makes certificates that nobody has asked for before.
func wishesOf(scene string, round, certificates, domains int) []wish {
	var wishes []wish
	for i := range certificates {
		w := wish{name: fmt.Sprintf("%s-r%d-c%d", scene, round, i)}
		for d := range domains {
			w.domains = append(w.domains, fmt.Sprintf("d%d.%s.example.com", d, w.name))
		}
		wishes = append(wishes, w)
	}
	return wishes
}

// lookers is how many certificates are looked at at once.
const lookers = 4

// issued asks for certificates and returns how long it takes until HAProxy serves all of them.
func issued(ctx context.Context, c client, wishes []wish) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 4*time.Minute, fmt.Errorf("certificates were not served in time"))
	defer cancel()
	start := time.Now()
	var group sync.WaitGroup
	failed := make(chan error, lookers+1)
	group.Go(func() { failed <- c.ask(ctx, wishes) })
	for i := range lookers {
		group.Go(func() {
			for n := i; n < len(wishes); n += lookers {
				if err := served(ctx, c.address(), wishes[n].domains[len(wishes[n].domains)-1]); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		})
	}
	var first error
	for range lookers + 1 {
		if err := <-failed; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	took := time.Since(start)
	group.Wait()
	return took, first
}

// served waits until a full TLS handshake shows a certificate of the authority for the name.
func served(ctx context.Context, address, name string) error {
	return fixture.Await(ctx, 4*time.Minute, func() error {
		s, err := fixture.Fetch(ctx, address, name)
		switch {
		case err != nil:
			return err
		case !strings.HasPrefix(s.Issuer, "Pebble "):
			return fmt.Errorf("%s: issued by %q", name, s.Issuer)
		}
		return s.Leaf().VerifyHostname(name)
	})
}
