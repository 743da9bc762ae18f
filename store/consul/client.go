package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// How long calls may take.
const (
	callTimeout    = 5 * time.Second
	acquireTimeout = 2 * time.Second // an ack that hangs is written again soon
	listTimeout    = 60 * time.Second
	waitTime       = 55 * time.Second // of a blocking query; Consul adds up to a sixteenth
)

// Why a write was not done, as far as that can be told. Any other error leaves it open whether it was.
var (
	errNotDone   = errors.New("not done")
	errForbidden = errors.New("forbidden by Consul")
)

// client makes the calls: each has a deadline and an error that says what was called and what to do.
type client struct {
	api     *api.Client
	addr    address
	log     *slog.Logger
	metrics *metrics
	contact contact
	jitter  func(time.Duration) time.Duration
}

func newClient(addr address, cfg Config, m *metrics) (*client, error) {
	rt, err := newTransport(addr, cfg.Getenv, cfg.Logger)
	if err != nil {
		return nil, err
	}
	rt.received, rt.given = m.received, cfg.Transport
	config := &api.Config{
		Address: addr.host, Scheme: addr.scheme, PathPrefix: addr.path, Datacenter: addr.dc,
		Token:      "set by the transport", // else the client would read the token's file itself, once
		HttpClient: &http.Client{Transport: rt},
	}
	if auth := cfg.Getenv("CONSUL_HTTP_AUTH"); auth != "" {
		user, password, _ := strings.Cut(auth, ":")
		config.HttpAuth = &api.HttpBasicAuth{Username: user, Password: password}
	}
	c, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("connect to Consul at %s: %w", addr, err)
	}
	return &client{api: c, addr: addr, log: cfg.Logger, metrics: m, contact: contact{log: cfg.Logger}, jitter: cfg.Jitter}, nil
}

// call is one call that is under way.
type call struct {
	ctx    context.Context
	cancel context.CancelFunc
	c      *client
	what   string
	status int
	local  bool // the agent answers it alone: that says nothing of Consul
}

func (c *client) begin(ctx context.Context, timeout time.Duration, what string) *call {
	k := &call{c: c, what: what}
	ctx = context.WithValue(ctx, statusKey{}, &k.status)
	k.ctx, k.cancel = context.WithTimeout(ctx, timeout)
	return k
}

// read ends a call that changes nothing.
func (k *call) read(err error) error {
	k.cancel()
	k.c.metrics.called(err)
	if err != nil {
		err = k.explain(err)
	}
	k.noteContact(err)
	return err
}

// written ends a call that changes something: its error wraps errNotDone when nothing was changed.
func (k *call) written(err error) error {
	k.cancel()
	k.c.metrics.called(err)
	if err == nil {
		k.noteContact(nil)
		return nil
	}
	why := k.explain(err)
	k.noteContact(why)
	var dial *net.OpError
	refused := k.status >= 400 && k.status < 500 && k.status != http.StatusRequestTimeout
	if refused || k.status == 0 && errors.As(err, &dial) && dial.Op == "dial" {
		return fmt.Errorf("%w: %w", errNotDone, why)
	}
	return why
}

func (k *call) explain(err error) error {
	var dial *net.OpError
	switch {
	case k.status == http.StatusForbidden || strings.Contains(err.Error(), "ACL not found"):
		return fmt.Errorf("%s: %w: give the token the policy of its role, see haproxy-conf/consul: %w", k.what, errForbidden, err)
	case strings.Contains(err.Error(), "HTTP request to an HTTPS server"):
		return fmt.Errorf("%s: Consul at %s speaks HTTPS only: set CONSUL_HTTP_SSL=true, and CONSUL_CACERT where its CA is a private one: %w", k.what, k.c.addr, err)
	case k.status != 0 && k.status < http.StatusInternalServerError:
		return fmt.Errorf("%s: %w", k.what, err)
	case errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout():
		err = fmt.Errorf("the Consul at %s does not answer: see whether its host is up and no packet filter is in the way: %w", k.c.addr, dial.Err)
	case errors.As(err, &dial) && dial.Op == "dial":
		err = fmt.Errorf("no Consul at %s: start its agent or correct SPOACME_STORE: %w", k.c.addr, dial.Err)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("the Consul at %s does not answer: %w", k.c.addr, context.DeadlineExceeded)
	default:
		err = explainTLS(k.c.addr, err)
	}
	return unreached{fmt.Errorf("%s: %w", k.what, err)}
}

// explainTLS says which of Consul's variables mends a handshake that failed.
func explainTLS(addr address, err error) error {
	var alert tls.AlertError
	text := err.Error()
	switch {
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("the Consul at %s does not speak HTTPS: unset CONSUL_HTTP_SSL, or name its HTTPS port in SPOACME_STORE: %w", addr, err)
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("the Consul at %s has a certificate of a CA that is not trusted here: name that CA's file in CONSUL_CACERT: %w", addr, err)
	case errors.As(err, new(x509.HostnameError)):
		return fmt.Errorf("the Consul at %s has a certificate for another name: set CONSUL_TLS_SERVER_NAME: %w", addr, err)
	case errors.As(err, &alert), strings.Contains(text, "remote error: tls:"):
		return fmt.Errorf("the Consul at %s refuses this client's certificate or its lack: name one of its CA's in CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: %w", addr, err)
	}
	return err
}

// options of a read that blocks until there is something newer than index, and of one that does not when it is 0.
func (k *call) options(index uint64) *api.QueryOptions {
	q := &api.QueryOptions{WaitIndex: index}
	if index > 0 {
		q.WaitTime = waitTime
	}
	return q.WithContext(k.ctx)
}

func (k *call) writeOptions() *api.WriteOptions { return new(api.WriteOptions).WithContext(k.ctx) }

// deadline of a read with or without blocking.
func deadline(index uint64, plain time.Duration) time.Duration {
	if index == 0 {
		return plain
	}
	return waitTime + waitTime/16 + plain
}

// get reads one key; the pair is nil when it is absent.
func (c *client) get(ctx context.Context, key string, index uint64) (*api.KVPair, uint64, error) {
	k := c.begin(ctx, deadline(index, callTimeout), "read "+key)
	pair, meta, err := c.api.KV().Get(key, k.options(index))
	if err := k.read(err); err != nil {
		return nil, 0, err
	}
	return pair, meta.LastIndex, nil
}

// getConsistent is get that asks a quorum.
func (c *client) getConsistent(ctx context.Context, key string) (*api.KVPair, uint64, error) {
	k := c.begin(ctx, callTimeout, "read "+key)
	q := k.options(0)
	q.RequireConsistent = true
	pair, meta, err := c.api.KV().Get(key, q)
	if err := k.read(err); err != nil {
		return nil, 0, err
	}
	return pair, meta.LastIndex, nil
}

// list reads all keys below dir but the sentinel. An empty list is empty: a forbidden one is an error.
func (c *client) list(ctx context.Context, dir string, index uint64) (api.KVPairs, uint64, error) {
	k := c.begin(ctx, deadline(index, listTimeout), "list "+dir)
	pairs, meta, err := c.api.KV().List(dir, k.options(index))
	if err := k.read(err); err != nil {
		return nil, 0, err
	}
	if len(pairs) == 0 {
		// To a token without rights Consul shows an empty list, but it refuses a single key.
		if _, _, err := c.get(ctx, dir+sentinel, 0); err != nil {
			return nil, 0, err
		}
	}
	kept := pairs[:0]
	for _, p := range pairs {
		if p.Key != dir+sentinel {
			kept = append(kept, p)
		}
	}
	return kept, meta.LastIndex, nil
}

// names lists the keys that begin with prefix, cut after the next separator if there is one.
func (c *client) names(ctx context.Context, prefix, separator string, index uint64) ([]string, uint64, error) {
	k := c.begin(ctx, deadline(index, listTimeout), "list keys of "+prefix)
	keys, meta, err := c.api.KV().Keys(prefix, separator, k.options(index))
	if err := k.read(err); err != nil {
		return nil, 0, err
	}
	return keys, meta.LastIndex, nil
}

// txn makes one transaction. refused holds what did not hold when none of it was done.
func (c *client) txn(ctx context.Context, ops api.TxnOps) (results api.TxnResults, refused api.TxnErrors, err error) {
	k := c.begin(ctx, callTimeout, "write to Consul")
	ok, resp, _, err := c.api.Txn().Txn(ops, k.options(0))
	if err := k.written(err); err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, resp.Errors, nil
	}
	return resp.Results, nil, nil
}

// session makes a session that ends ttl (at most twice that) after its last renewal and is bound to nothing else.
func (c *client) session(ctx context.Context, name, behavior string) (string, error) {
	k := c.begin(ctx, callTimeout, "create a session")
	id, _, err := c.api.Session().CreateNoChecks(&api.SessionEntry{
		Name: name, TTL: ttl.String(), Behavior: behavior, LockDelay: time.Millisecond,
	}, k.writeOptions())
	return id, k.written(err)
}

// renew reports whether the session is still there.
func (c *client) renew(ctx context.Context, id string) (bool, error) {
	k := c.begin(ctx, ttl/4, "renew the session")
	entry, _, err := c.api.Session().Renew(id, k.writeOptions())
	if err := k.written(err); err != nil {
		return false, err
	}
	return entry != nil, nil
}

// destroy ends a session, although ctx may have ended.
func (c *client) destroy(ctx context.Context, id string) error {
	k := c.begin(context.WithoutCancel(ctx), 2*time.Second, "end the session")
	_, err := c.api.Session().Destroy(id, k.writeOptions())
	return k.written(err)
}

// acquire writes a key and binds it to a session. It reports false when another session has it.
func (c *client) acquire(ctx context.Context, key string, value []byte, session string) (bool, error) {
	k := c.begin(ctx, acquireTimeout, "write "+key)
	ok, _, err := c.api.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: session}, k.writeOptions())
	return ok, k.written(err)
}

// put writes a key that is bound to nothing.
func (c *client) put(ctx context.Context, key string, value []byte) error {
	k := c.begin(ctx, callTimeout, "write "+key)
	_, err := c.api.KV().Put(&api.KVPair{Key: key, Value: value}, k.writeOptions())
	return k.written(err)
}

// remove deletes a key, or everything below it when it ends with a slash.
func (c *client) remove(ctx context.Context, key string) error {
	k := c.begin(ctx, callTimeout, "delete "+key)
	var err error
	if strings.HasSuffix(key, "/") {
		_, err = c.api.KV().DeleteTree(key, k.writeOptions())
	} else {
		_, err = c.api.KV().Delete(key, k.writeOptions())
	}
	return k.written(err)
}

// isForbidden reads the text that a transaction gives for an operation.
func isForbidden(what string) bool {
	return strings.Contains(what, "Permission denied") || strings.Contains(what, "ACL not found")
}
