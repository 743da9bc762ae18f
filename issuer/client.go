package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/spoacme/spoacme/store"
)

// client is one account at one CA during one lease. All orders share it, and so its connections and nonces.
type client struct {
	directory  string
	core       *api.Core
	transport  *transport
	account    *store.Account
	thumbprint string
}

func (t *term) newTransport(directory string, base *http.Client) *transport {
	id := CAID(directory)
	rt := base.Transport
	if rt == nil {
		rt = http.DefaultTransport
	}
	return &transport{
		base: rt, ctx: t.ctx, after: map[string]time.Time{},
		observe: func(status int, took time.Duration) {
			t.metrics.requests.WithLabelValues(id, strconv.Itoa(status)).Observe(took.Seconds())
		},
	}
}

// connect reads the CA's directory and prepares to speak for an account; kid is empty before newAccount.
func connect(tr *transport, agent, directory, kid string, acc *store.Account) (*client, error) {
	key, err := parseKey(acc.Private)
	if err != nil {
		return nil, fmt.Errorf("open account %s: %w", acc.ID, err)
	}
	core, err := retry(tr.ctx, tr, func() (*api.Core, error) {
		return api.New(&http.Client{Transport: tr}, agent, directory, kid, key)
	})
	if err != nil {
		f := fail(notReached(directory, err))
		if f.class == classRefused {
			f.class = classUnavailable
		}
		return nil, f
	}
	c := &client{directory: directory, core: core, transport: tr, account: acc}
	auth, err := core.GetKeyAuthorization("")
	if err != nil {
		return nil, fmt.Errorf("open account %s: %w", acc.ID, err)
	}
	c.thumbprint = auth[1:]
	return c, nil
}

// notReached explains why a directory could not be read, naming its URL once.
func notReached(directory string, err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return fmt.Errorf("reach the CA: %w", err)
	}
	err = fmt.Errorf("reach the CA: %s: %w", directory, u.Err)
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		err = fmt.Errorf("%w; if the CA is a private one, put its root into a file and name that in SPOACME_CA_ROOTS", err)
	}
	return err
}

// newOrder places an order and returns it with its URL. It is not repeated on failure: nobody can tell whether it
// was placed.
func (c *client) newOrder(o *store.Order) (acme.ExtendedOrder, error) {
	order, err := c.core.Orders.NewWithOptions(o.Spec.Domains, &api.OrderOptions{
		Profile: o.Spec.Profile, ReplacesCertID: o.Replaces,
	})
	if err != nil {
		return order, fmt.Errorf("place order: %w", c.transport.explain(err))
	}
	if order.Location == "" || len(order.Location) > 2048 {
		return order, errors.New("place order: the CA did not say where the order is")
	}
	return order, c.sane(&order.Order, len(o.Spec.Domains))
}

// sane bounds what one order can make us do.
func (c *client) sane(order *acme.Order, names int) error {
	if n := len(order.Authorizations); n > names {
		return fmt.Errorf("read order: %d authorizations for %d names", n, names)
	}
	return nil
}

func (c *client) order(ctx context.Context, o *store.Order) (acme.ExtendedOrder, error) {
	order, err := retry(ctx, c.transport, func() (acme.ExtendedOrder, error) { return c.core.Orders.Get(o.URL) })
	if err != nil {
		return order, fmt.Errorf("read order: %w", err)
	}
	return order, c.sane(&order.Order, len(o.Spec.Domains))
}

func (c *client) authorization(ctx context.Context, url string) (acme.Authorization, error) {
	a, err := retry(ctx, c.transport, func() (acme.Authorization, error) { return c.core.Authorizations.Get(url) })
	if err != nil {
		return a, fmt.Errorf("read authorization: %w", err)
	}
	return a, nil
}

// answer tells the CA to validate a challenge. One that it is validating already, after an answer that got lost, is
// fine.
func (c *client) answer(ctx context.Context, url string) error {
	_, err := retry(ctx, c.transport, func() (acme.ExtendedChallenge, error) { return c.core.Challenges.New(url) })
	if isProblem(err, "malformed") {
		ch, unread := retry(ctx, c.transport, func() (acme.ExtendedChallenge, error) { return c.core.Challenges.Get(url) })
		if unread == nil && ch.Status != acme.StatusPending {
			return nil
		}
		if unread != nil { // the problem may be that one
			err = unread
		}
	}
	if err != nil {
		return fmt.Errorf("answer challenge: %w", err)
	}
	return nil
}

func (c *client) certificate(ctx context.Context, url string) ([]byte, error) {
	chain, err := retry(ctx, c.transport, func() ([]byte, error) {
		chain, _, err := c.core.Certificates.Get(url, true)
		return chain, err
	})
	if err != nil {
		return nil, fmt.Errorf("download certificate: %w", err)
	}
	return chain, nil
}

// now is the time by which the CA's certificates are judged: the CA's own where ours is off.
func (c *client) now() time.Time {
	now, fresh := c.transport.now()
	if fresh {
		return now
	}
	req, err := http.NewRequest(http.MethodGet, c.directory, nil)
	if err != nil {
		return now
	}
	if resp, err := c.transport.RoundTrip(req); err == nil {
		resp.Body.Close()
	}
	now, _ = c.transport.now()
	return now
}

// retry repeats what may be repeated while the CA fails in ways that pass: three tries within some seconds. The pauses
// of a failing CA are longer and stored: see attempt.go. What a sibling's failure has ended is not begun.
func retry[T any](ctx context.Context, tr *transport, call func() (T, error)) (v T, err error) {
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval = 250 * time.Millisecond
	pauses.MaxInterval = 2 * time.Second
	pauses.RandomizationFactor = 0 // one process of a fleet asks
	return backoff.Retry(ctx, func() (T, error) {
		v, err := call()
		err = tr.explain(err)
		if err != nil && (ended(ctx, err) || !isTransient(err)) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(pauses), backoff.WithMaxTries(3))
}
