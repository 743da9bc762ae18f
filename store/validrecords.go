package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Validate implements Record.
func (r *Wanted) Validate() error {
	if err := first(ValidName(r.Name), r.Spec.Validate(), optionalTime("renew_asked", r.RenewAsked), validText("note", r.Note)); err != nil {
		return err
	}
	for _, node := range r.Sources {
		if err := ValidName(node); err != nil {
			return fmt.Errorf("sources: %w", err)
		}
	}
	return nil
}

// Validate implements Record. Whether chain, key and the other fields belong together is seen by Bundle only.
func (r *Certificate) Validate() error {
	err := first(ValidName(r.Name), validDomains(r.Domains),
		optionalURL("ca", r.CA), optionalURL("url", r.URL),
		validTime("not_before", r.NotBefore), validTime("not_after", r.NotAfter),
		validTime("issued_at", r.IssuedAt), optionalTime("renew_at", r.RenewAt),
		validText("issuer", r.Issuer), validText("ari_id", r.ARIID))
	switch {
	case err != nil:
		return err
	case !strings.HasPrefix(r.Chain, "-----BEGIN CERTIFICATE-----\n"):
		return errors.New("chain is not PEM that begins with the leaf")
	case holdsKey(r.Chain):
		return errors.New("chain holds a private key")
	case r.Private.Empty():
		return errors.New("private is missing")
	case !serialPattern.MatchString(r.Serial):
		return errors.New("serial is not lower-case hex without leading zeros")
	case !fingerprintPattern.MatchString(r.Fingerprint):
		return errors.New("fingerprint is not 40 digits of upper-case hex")
	case !r.NotBefore.Before(r.NotAfter):
		return errors.New("not_after is not later than not_before")
	}
	return validTimes("before", r.Before)
}

// Validate implements Record.
func (r *Order) Validate() error {
	err := first(ValidName(r.Name), validURL("ca", r.CA), ValidName(r.Account), r.Spec.Validate(),
		optionalURL("url", r.URL), validTime("started", r.Started), validText("replaces", r.Replaces),
		validText("damaged", r.Damaged), optionalTime("damaged_at", r.DamagedAt))
	switch {
	case err != nil:
		return err
	case r.Private.Empty():
		return errors.New("private is missing")
	case r.Finalized && r.URL == "":
		return errors.New("finalized, but url is missing")
	}
	return nil
}

// Validate implements Record.
func (r *Attempt) Validate() error {
	err := first(ValidName(r.Name), optionalURL("ca", r.CA), optionalTime("tried", r.Tried),
		optionalTime("next", r.Next), validText("error", r.Error), validText("domain", r.Domain))
	if err == nil && r.Failures < 0 {
		err = fmt.Errorf("failures is %d", r.Failures)
	}
	if err == nil && r.CutShort < 0 {
		err = fmt.Errorf("cut_short is %d", r.CutShort)
	}
	return err
}

// Validate implements Record.
func (r *Budget) Validate() error {
	return first(ValidName(r.CA), validTimes("orders", r.Orders), optionalTime("until", r.Until), validText("error", r.Error))
}

// Validate implements Record.
func (r *Account) Validate() error {
	err := first(ValidName(r.ID), validURL("ca", r.CA), validText("email", r.Email), optionalURL("url", r.URL),
		optionalTime("registered", r.Registered))
	if err == nil && r.Private.Empty() {
		err = errors.New("private is missing")
	}
	return err
}

// Validate implements Record.
func (r *Challenges) Validate() error {
	switch {
	case ValidName(r.Name) != nil:
		return ValidName(r.Name)
	case r.Generation == 0:
		return errors.New("generation is missing")
	case !thumbprintPattern.MatchString(r.Thumbprint):
		return errors.New("thumbprint is not base64url of 32 bytes")
	case len(r.Tokens) > maxDomains:
		return fmt.Errorf("%d tokens, the limit is %d", len(r.Tokens), maxDomains)
	}
	for i, t := range r.Tokens {
		if !ValidToken(t) {
			return fmt.Errorf("token %d is not 1 to 128 characters of base64url", i+1)
		}
		if slices.Contains(r.Tokens[:i], t) {
			return fmt.Errorf("token %d is there twice", i+1)
		}
	}
	return nil
}

// Validate implements Record.
func (r *Demand) Validate() error {
	if err := first(ValidName(r.Node), validTime("since", r.Since), optionalTime("seen", r.Seen)); err != nil {
		return err
	}
	for name, spec := range r.Certificates {
		if err := first(ValidName(name), spec.Validate()); err != nil {
			return fmt.Errorf("certificate %q: %w", name, err)
		}
	}
	return nil
}

// Validate implements Record.
func (r *Request) Validate() error {
	err := first(ValidName(r.ID), ValidName(r.Certificate), validTime("asked", r.Asked), optionalTime("done", r.Done),
		validText("error", r.Error))
	if err != nil {
		return err
	}
	switch r.Op {
	case RequestIssue:
		return r.Spec.Validate()
	case RequestRenew, RequestRemove:
		return nil
	}
	return fmt.Errorf("op %.64q: use issue, renew or remove", r.Op)
}

func validTimes(field string, times []time.Time) error {
	for _, t := range times {
		if err := validTime(field, t); err != nil {
			return err
		}
	}
	return nil
}
