// Package spoa is the SPOE agent that answers HAProxy's questions about
// http-01 challenges (RFC 8555 section 8.3).
//
// HAProxy sends the path of a request below /.well-known/acme-challenge/; the
// agent looks the token up in a [Table] in memory and sets the variable
// keyauth to the key authorization, or the variable miss when it has none.
// What HAProxy does with them (a 200, a 404, the site's own rules) is decided
// by HAProxy's configuration.
//
// The frames are decoded by haproxy-spoe-go, which trusts its peer: malformed
// frames make it panic, it has no deadlines and no limits, and it cannot be
// stopped. This package contains it. Connections are accepted here, every
// frame is read whole, checked and bounded before the library sees a byte of
// it, and whatever still goes wrong ends one connection and nothing else.
//
// Filling the table, and everything about certificates, is left to others.
package spoa
