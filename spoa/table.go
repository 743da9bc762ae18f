package spoa

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// maxName is the longest token, and the longest thumbprint, that is accepted.
// CAs send tokens of 22 to 64 characters; a thumbprint has 43.
const maxName = 128

// Table holds the tokens of the orders that are under way and the key
// authorization of each. Any number of readers look tokens up without
// contention while a writer changes the table. The zero value is an empty
// table ready for use; a Table must not be copied.
type Table struct {
	write sync.Mutex // one writer at a time
	now   atomic.Pointer[contents]
}

// contents is one state of a table. It never changes once it is published.
type contents struct {
	generation uint64
	orders     map[string]tokens
	flat       map[string]string // of all orders: token to key authorization
}

// tokens are those of one order, and the generation that brought them.
type tokens struct {
	generation uint64
	keyAuths   map[string]string
}

// Publish replaces the tokens of order by keyAuths, which maps each token to
// its key authorization, "token.thumbprint" (RFC 8555 section 8.1). When
// Publish has returned, every lookup sees them. A token or key authorization
// that is not of that form is an error, and then the table is unchanged.
func (t *Table) Publish(order string, generation uint64, keyAuths map[string]string) error {
	for token, keyAuth := range keyAuths {
		if err := checkKeyAuth(token, keyAuth); err != nil {
			return fmt.Errorf("publish tokens of order %q: %w", order, err)
		}
	}
	t.change(func(c *contents) {
		c.generation = max(c.generation, generation)
		c.orders[order] = tokens{generation, maps.Clone(keyAuths)}
	})
	return nil
}

// Withdraw forgets the tokens of order, except those that another order has
// too (a CA may put one pending authorization into several orders). The
// generation stays. An order that is not there is no error.
func (t *Table) Withdraw(order string) {
	t.change(func(c *contents) { delete(c.orders, order) })
}

// Replace makes orders, which maps each order to its tokens as Publish takes
// them, the whole content of the table and generation its generation, even if
// that is lower than before. Malformed tokens are left out and named in the
// error; all others are in the table nevertheless.
func (t *Table) Replace(generation uint64, orders map[string]map[string]string) error {
	var bad []error
	fresh := make(map[string]tokens, len(orders))
	for order, keyAuths := range orders {
		good := make(map[string]string, len(keyAuths))
		for token, keyAuth := range keyAuths {
			if err := checkKeyAuth(token, keyAuth); err != nil {
				bad = append(bad, fmt.Errorf("publish tokens of order %q: %w", order, err))
				continue
			}
			good[token] = keyAuth
		}
		fresh[order] = tokens{generation, good}
	}
	t.change(func(c *contents) {
		c.generation = generation
		c.orders = fresh
	})
	return errors.Join(bad...)
}

// Lookup returns the key authorization of token.
func (t *Table) Lookup(token string) (keyAuth string, ok bool) {
	if c := t.now.Load(); c != nil {
		keyAuth, ok = c.flat[token]
	}
	return keyAuth, ok
}

// Generation returns the highest generation that is in the table, 0 when
// nothing was ever published.
func (t *Table) Generation() uint64 {
	if c := t.now.Load(); c != nil {
		return c.generation
	}
	return 0
}

// Len returns the number of different tokens in the table.
func (t *Table) Len() int {
	if c := t.now.Load(); c != nil {
		return len(c.flat)
	}
	return 0
}

// change publishes what edit makes of a copy of the contents.
func (t *Table) change(edit func(*contents)) {
	t.write.Lock()
	defer t.write.Unlock()
	var next contents
	if old := t.now.Load(); old != nil {
		next = contents{generation: old.generation, orders: maps.Clone(old.orders)}
	} else {
		next.orders = make(map[string]tokens)
	}
	edit(&next)
	next.flatten()
	t.now.Store(&next)
}

// flatten fills c.flat from c.orders. Of two orders that disagree about a
// token the one published later counts.
func (c *contents) flatten() {
	c.flat = make(map[string]string)
	since := make(map[string]uint64)
	for _, o := range c.orders {
		for token, keyAuth := range o.keyAuths {
			if g, taken := since[token]; taken && g > o.generation {
				continue
			}
			since[token] = o.generation
			c.flat[token] = keyAuth
		}
	}
}

// checkKeyAuth accepts a well-formed token with a key authorization that
// belongs to it.
func checkKeyAuth(token, keyAuth string) error {
	if !base64URL(token) {
		return fmt.Errorf("token %.140q is not 1 to %d characters of A-Z, a-z, 0-9, '-' and '_'", token, maxName)
	}
	if thumbprint, ok := strings.CutPrefix(keyAuth, token+"."); !ok || !base64URL(thumbprint) {
		return fmt.Errorf("key authorization of token %q is not the token, a dot and an account key's thumbprint", token)
	}
	return nil
}

// base64URL reports whether s has the form of a token or a thumbprint.
func base64URL(s string) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
