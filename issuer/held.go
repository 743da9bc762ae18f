package issuer

import (
	"fmt"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Held says until when limits of the CAs hold back an order for a certificate, and which one, as far as the records tell; the zero
// time when none does. have is what is stored of it and may be nil; budgets are by CA.
func (i *Issuer) Held(w *store.Wanted, have *store.Certificate, budgets map[string]*store.Budget, now time.Time) (until time.Time, why string) {
	settings, _ := i.current()
	cas := settings.CAs
	if w.Spec.CA != "" {
		cas = []CA{settings.ca(w.Spec.CA)}
	}
	for _, ca := range cas {
		at, limit := heldBy(ca, w, have, budgets[ca.id], now)
		if at.IsZero() {
			return at, ""
		}
		if until.IsZero() || at.Before(until) {
			until, why = at, limit
		}
	}
	return until, why
}

func heldBy(ca CA, w *store.Wanted, have *store.Certificate, b *store.Budget, now time.Time) (until time.Time, why string) {
	if b != nil && b.Until.After(now) {
		return b.Until, fmt.Sprintf("which the CA demands (%s): %s", ca.id, b.Error)
	}
	if _, at := room(ca, b, now); !at.IsZero() {
		return at, fmt.Sprintf("because of the CA's limit on new orders (%s)", ca.id)
	}
	if have == nil || !covers(have.Domains, w.Spec.Domains) || !covers(w.Spec.Domains, have.Domains) {
		return time.Time{}, ""
	}
	return duplicates(ca, factsOf(have), now), fmt.Sprintf("because of the CA's limit on certificates for the same names (%s)", ca.id)
}
