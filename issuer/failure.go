package issuer

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-acme/lego/v4/acme"

	"github.com/spoacme/spoacme/store"
)

// class is what a failure means for the next try.
type class int

const (
	classUnavailable class = iota // the CA is down, unreachable or talks nonsense
	classDomain                   // a name could not be validated
	classRefused                  // the CA will not, whatever is tried: CAA, policy, a bad request
	classAccount                  // the account: unknown, terms, external binding
	classLimited                  // a rate limit
	classStore                    // the store refuses what we want to write
	classNobody                   // no HAProxy would answer the CA
)

func (c class) String() string {
	return [...]string{"unavailable", "domain", "refused", "account", "limited", "store", "nobody"}[c]
}

// failure is why an order ended without a certificate. Its text is stored and shown to users.
type failure struct {
	class  class
	domain string    // the name that failed, when it is one
	until  time.Time // the CA's Retry-After; zero without one
	wide   bool      // a limit on the account or on all requests, not on this certificate
	gone   bool      // the order is over at the CA
	own    bool      // of this order alone: the CA is there for others
	err    error
}

func (f *failure) Error() string { return shorten(f.err.Error(), 2000) }
func (f *failure) Unwrap() error { return f.err }

// hopeless reports whether an order that the CA neither fulfils nor ends is given up: a CA that has gone for ever, or that no longer
// knows us, must not hold a certificate up. By then no request of ours can still be on its way; where the CA was asked to
// issue already, the order's own end is waited for.
func (f *failure) hopeless(o *store.Order, now time.Time) bool {
	if f.class != classUnavailable && f.class != classAccount {
		return false
	}
	patience := 24 * time.Hour
	if o.Finalized {
		patience = week
	}
	return now.Sub(o.Started) > patience
}

// fail makes a failure of an error, whatever it is.
func fail(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var problem *acme.ProblemDetails
	if errors.As(err, &problem) {
		f = ofProblem(problem)
		f.err = fmt.Errorf("%s: %w", context1(err), f.err)
		if problem.HTTPStatus == http.StatusNotFound && f.class == classRefused {
			f.class = classUnavailable // part of an order that is gone: the next try finds out
		}
		f.until = untilOf(err)
		return f
	}
	f = &failure{class: classUnavailable, until: untilOf(err), err: err}
	var h *httpError
	if errors.As(err, &h) {
		f.until = h.until
		switch {
		case h.status == http.StatusTooManyRequests:
			f.class, f.wide = classLimited, true
		case h.status >= 400 && h.status < 500:
			f.class = classRefused
		}
	}
	return f
}

// context1 is the text that was wrapped around a problem document: what was being done.
func context1(err error) string {
	before, _, found := strings.Cut(err.Error(), ": acme: error:")
	if !found {
		return "ask the CA"
	}
	return before
}

// untilOf is the Retry-After that came with a problem; the zero time without one.
func untilOf(err error) time.Time {
	var d *delayed
	if !errors.As(err, &d) {
		return time.Time{}
	}
	return d.until
}

// mustWait reports whether the CA wants to be left alone for a time: then not even a question follows.
func mustWait(err error) bool {
	f := fail(err)
	return !f.until.IsZero() && (f.class == classUnavailable || f.class == classLimited)
}

// The remedies for problems whose detail does not say one, by the last word of the problem's type
// (RFC 8555 section 6.7).
var remedies = map[string]string{
	"userActionRequired":      "agree to the CA's new terms at the address given, then renew",
	"externalAccountRequired": "the CA wants external account binding: set SPOACME_EAB_KID and SPOACME_EAB_HMAC, which it gave you, in the sidecar's environment",
	"accountDoesNotExist":     "the CA does not know our account; if it was reset there, start the sidecar once with --new-account",
	"caa":                     "allow this CA in the name's CAA record, or use another CA",
	"rejectedIdentifier":      "this CA does not issue for the name; use another name or CA",
	"connection":              "the CA must reach port 80 of every address that the name has in DNS",
	"dns":                     "check the name's DNS records",
	"unauthorized":            "the name must lead to HAProxy on port 80, and its challenge rule must stand before redirects",
	"incorrectResponse":       "the name must lead to HAProxy on port 80, and its challenge rule must stand before redirects",
}

var classes = map[string]class{
	"caa": classRefused, "rejectedIdentifier": classRefused, "unsupportedIdentifier": classRefused,
	"malformed": classRefused, "badCSR": classRefused, "badPublicKey": classRefused, "unsupportedContact": classAccount,
	"invalidContact": classAccount, "invalidProfile": classRefused, "badSignatureAlgorithm": classAccount,
	"accountDoesNotExist": classAccount, "externalAccountRequired": classAccount, "userActionRequired": classAccount,
	"rateLimited": classLimited, "serverInternal": classUnavailable, "badNonce": classUnavailable,
	"connection": classDomain, "dns": classDomain, "tls": classDomain, "unauthorized": classDomain,
	"incorrectResponse": classDomain, "orderNotReady": classUnavailable,
}

// ofProblem classifies what the CA said. The text names its kind, its detail, every failing name, and what to do.
func ofProblem(p *acme.ProblemDetails) *failure {
	kind := problemKind(p.Type)
	f := &failure{class: classUnavailable}
	if c, ok := classes[kind]; ok {
		f.class = c
	} else if p.HTTPStatus >= 400 && p.HTTPStatus < 500 {
		f.class = classRefused
	}
	if p.HTTPStatus == http.StatusTooManyRequests {
		f.class = classLimited
	}
	f.wide = f.class == classLimited && accountWide(p.Detail)
	f.domain, f.err = describe(p, kind)
	return f
}

func describe(p *acme.ProblemDetails, kind string) (domain string, err error) {
	var b strings.Builder
	b.WriteString(cmp.Or(kind, http.StatusText(p.HTTPStatus), "refused"))
	if p.Detail != "" {
		b.WriteString(": " + oneLine(p.Detail))
	}
	for n, sub := range p.SubProblems {
		if sub.Identifier.Value != "" && domain == "" {
			domain = sub.Identifier.Value
		}
		if n == 10 {
			fmt.Fprintf(&b, "; and %d more", len(p.SubProblems)-n)
			break
		}
		fmt.Fprintf(&b, "; %s: %s: %s", sub.Identifier.Value, problemKind(sub.Type), oneLine(sub.Detail))
	}
	if p.Instance != "" {
		b.WriteString(" (" + oneLine(p.Instance) + ")")
	}
	if r := remedies[kind]; r != "" {
		b.WriteString("; " + r)
	}
	return domain, errors.New(b.String())
}

// accountWide tells limits on all that we do from those on one certificate's names. The CA says it in prose only.
func accountWide(detail string) bool {
	d := strings.ToLower(detail)
	for _, s := range []string{"new orders", "registrations", "pending authorizations", "requests", "account"} {
		if strings.Contains(d, s) {
			return !strings.Contains(d, "prevented from requesting certificates for")
		}
	}
	return false
}

func problemKind(t string) string { return t[strings.LastIndexAny(t, ":/")+1:] }

func isProblem(err error, kind string) bool {
	var p *acme.ProblemDetails
	return errors.As(err, &p) && problemKind(p.Type) == kind
}

// isGone reports whether the CA says that what was asked for does not exist.
func isGone(err error) bool {
	var p *acme.ProblemDetails
	if errors.As(err, &p) {
		return p.HTTPStatus == http.StatusNotFound
	}
	var h *httpError
	return errors.As(err, &h) && h.status == http.StatusNotFound
}

// isTransient reports whether the same request may well succeed in a moment.
func isTransient(err error) bool {
	f := fail(err)
	return f.class == classUnavailable && f.until.IsZero() && !isProblem(err, "badNonce") // which was repeated already
}

// oneLine makes foreign text fit for a log line: no control characters, bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return shorten(strings.TrimSpace(s), 1200)
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
