package issuer

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spoacme/spoacme/store"
)

// Fleet is what the leader needs of the other nodes. All methods may be called at once.
type Fleet interface {
	// Live names the nodes that are live.
	Live(ctx context.Context) ([]string, error)
	// Ask has every live node compare what it has on disk with the fingerprints of what is stored, by certificate and "" for
	// nothing, and offer what is better. It returns when all have, or with the names of the others when ctx ends. A node that
	// did not answer before is not waited for until it does.
	Ask(ctx context.Context, lease store.Lease, stored map[string]string) (missing []string, err error)
	// Offers reads what nodes offer under a name, under any if it is empty. What can't be read is left out.
	Offers(ctx context.Context, name string) ([]Offer, error)
	// FollowOffers calls changed at once and whenever there are other offers, until ctx ends.
	FollowOffers(ctx context.Context, changed func()) error
	// Reseal seals anew what is sealed with a key that is no longer the one to seal with, and returns which keys may be
	// dropped. It is cheap while the keys are the same.
	Reseal(ctx context.Context, lease store.Lease) (unused []string, err error)
}

// Offer is a certificate that a node has on disk and that the store has not, or not as good.
type Offer struct {
	Node        string
	Certificate *store.Certificate
}

// presence asks which nodes are live. Without an answer everybody has a say.
func (t *term) presence(ctx context.Context) *presence {
	if t.fleet == nil {
		return nil
	}
	live, err := t.fleet.Live(ctx)
	if err != nil {
		t.log.Debug("it is not known which nodes are live", "err", err)
		return &presence{}
	}
	p := &presence{known: true, live: map[string]bool{}}
	for _, node := range live {
		p.live[node] = true
	}
	return p
}

const (
	resealEvery = 15 * time.Second // it costs nothing unless the keys are others than before
	resealAgain = 5 * time.Minute  // after an error
)

// reseal keeps records sealed with the key that is to seal, and says which keys nobody needs any more.
func (t *term) reseal(ctx context.Context) error {
	said := ""
	for {
		pause := resealEvery
		unused, err := t.fleet.Reseal(ctx, t.lease)
		if err != nil && ctx.Err() == nil {
			t.log.Warn("records are not sealed anew; trying again", "err", err)
			pause = resealAgain
		}
		if text := strings.Join(unused, ", "); err == nil && text != said {
			said = text
			if text != "" {
				t.log.Info("nothing is sealed with these keys any more: each may be dropped with 'spoacme keygen drop FILE KEY'", "keys", text)
			}
		}
		if sleep(ctx, pause) != nil {
			return nil
		}
	}
}

const (
	// askFor is how long nodes have to say that they have nothing better. One whose connection broke in a restore of Consul may
	// hear of the question only after a minute.
	askFor  = 65 * time.Second
	askMost = 50 // certificates in one question
)

// inquiry is a certificate about which the nodes are to be asked.
type inquiry struct {
	name   string
	stored string // fingerprint
	done   chan error
}

// ask has all live nodes compare a certificate with their disks. When it returns nil, everybody has, or had the time to.
func (t *term) ask(ctx context.Context, name, stored string) error {
	q := inquiry{name, stored, make(chan error, 1)}
	select {
	case t.inquiries <- q:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-q.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// asker puts one question after the other. What waits meanwhile is asked together.
func (t *term) asker(ctx context.Context) error {
	for {
		var batch []inquiry
		select {
		case <-ctx.Done():
			return nil
		case q := <-t.inquiries:
			batch = append(batch, q)
		}
		for waiting := true; waiting && len(batch) < askMost; {
			select {
			case q := <-t.inquiries:
				batch = append(batch, q)
			default:
				waiting = false
			}
		}
		err := t.question(ctx, batch)
		for _, q := range batch {
			q.done <- err
		}
	}
}

func (t *term) question(ctx context.Context, batch []inquiry) error {
	stored := map[string]string{}
	for _, q := range batch {
		stored[q.name] = q.stored
	}
	actx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	missing, err := t.fleet.Ask(actx, t.lease, stored)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return &storeError{err}
	case len(missing) > 0:
		t.log.Warn("nodes did not say whether they have a better certificate; it is ordered all the same",
			"node", missing, "certificate", slices.Sorted(maps.Keys(stored)))
	}
	return nil
}
