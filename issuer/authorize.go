package issuer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-acme/lego/v4/acme"
	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/store"
)

// atOnce is how many requests of one order are in flight.
const atOnce = 20

// authorize publishes the tokens of every name that is not authorized yet, waits for the nodes, and lets the CA validate
// all of them at once. It returns the order when it is no longer pending.
func (f *flow) authorize(ctx context.Context, order acme.ExtendedOrder) (acme.ExtendedOrder, error) {
	tokens, urls, err := f.challenges(ctx, order.Authorizations)
	if err != nil {
		return order, err
	}
	if len(tokens) > 0 {
		if err := f.t.publish(ctx, f.plan.name, f.ca.thumbprint, tokens); err != nil {
			return order, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, url := range urls {
		g.Go(func() error { return f.ca.answer(gctx, url) })
	}
	if err := g.Wait(); mustWait(err) {
		return order, err
	} else if err != nil {
		// One answer refused may be the consequence of another name's failure: that is what the user should read.
		if blamed := f.blame(ctx, order.Authorizations); blamed != nil {
			return order, blamed
		}
		return order, err
	}
	return f.poll(ctx, acme.StatusPending)
}

// challenges collects what must be published and what must be answered. A name whose validation is under way already,
// begun by whoever led before, is published and not answered again.
func (f *flow) challenges(ctx context.Context, authorizations []string) (tokens, answer []string, err error) {
	all, err := f.authorizations(ctx, authorizations)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range all {
		switch a.Status {
		case acme.StatusValid:
			continue
		case acme.StatusPending:
		default:
			return nil, nil, blame(&a)
		}
		n := slices.IndexFunc(a.Challenges, func(c acme.Challenge) bool { return c.Type == "http-01" })
		if n < 0 {
			return nil, nil, &failure{class: classRefused, domain: a.Identifier.Value, err: fmt.Errorf(
				"authorize %s: the CA offers no http-01 challenge; use dns-01 or another CA", a.Identifier.Value)}
		}
		c := a.Challenges[n]
		if !store.ValidToken(c.Token) {
			return nil, nil, &failure{class: classRefused, domain: a.Identifier.Value, err: fmt.Errorf(
				"authorize %s: the CA's token is not one (RFC 8555 section 8.3)", a.Identifier.Value)}
		}
		if !slices.Contains(tokens, c.Token) {
			tokens = append(tokens, c.Token)
		}
		if c.Status == acme.StatusPending || c.Status == "" {
			answer = append(answer, c.URL)
		}
	}
	return tokens, answer, nil
}

func (f *flow) authorizations(ctx context.Context, urls []string) ([]acme.Authorization, error) {
	all := make([]acme.Authorization, len(urls))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, url := range urls {
		g.Go(func() (err error) {
			all[i], err = f.ca.authorization(gctx, url)
			return err
		})
	}
	return all, g.Wait()
}

// blame finds the name that failed, nil when there is none.
func (f *flow) blame(ctx context.Context, authorizations []string) *failure {
	all, err := f.authorizations(ctx, authorizations)
	if err != nil {
		return nil
	}
	var failures []*failure
	for _, a := range all {
		if a.Status != acme.StatusValid && a.Status != acme.StatusPending {
			failures = append(failures, blame(&a))
		}
	}
	if len(failures) == 0 {
		return nil
	}
	first := failures[0]
	if n := len(failures) - 1; n > 0 {
		var more []string
		for _, o := range failures[1:min(len(failures), 10)] {
			more = append(more, o.domain)
		}
		first.err = fmt.Errorf("%w; %d more names failed: %s", first.err, n, strings.Join(more, ", "))
	}
	return first
}

// blame says why an authorization is not valid.
func blame(a *acme.Authorization) *failure {
	domain := oneLine(a.Identifier.Value)
	f := &failure{class: classDomain, err: fmt.Errorf("the authorization is %s", oneLine(a.Status))}
	for _, c := range a.Challenges {
		if c.Error != nil {
			f = ofProblem(c.Error)
			if f.class == classUnavailable {
				f.class = classDomain
			}
		}
	}
	f.domain, f.gone = domain, true
	f.err = fmt.Errorf("validate %s: %w", domain, f.err)
	return f
}
