package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-acme/lego/v4/acme"

	"github.com/spoacme/spoacme/store"
)

// client returns the client of an account, made once however many orders ask for it at the same time.
func (t *term) client(directory, account string) (*client, error) {
	settings, _ := t.current()
	key := directory + " " + account
	v, err, _ := t.opening.Do(key, func() (any, error) {
		t.clientsMu.Lock()
		c := t.clients[key]
		t.clientsMu.Unlock()
		if c != nil {
			return c, nil
		}
		c, err := t.open(t.ctx, &settings, settings.ca(directory), account)
		if err != nil {
			return nil, err
		}
		t.clientsMu.Lock()
		defer t.clientsMu.Unlock()
		t.clients[key] = c
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*client), nil
}

// forget drops the clients, so that the next order opens its account with the settings in force.
func (t *term) forget() {
	t.clientsMu.Lock()
	defer t.clientsMu.Unlock()
	clear(t.clients)
}

// open finds or registers the account. Its key is in the store before the CA hears of it; registering the same key
// twice gives the same account (RFC 8555 section 7.3.1), so a crash in between leaves nothing behind.
func (t *term) open(ctx context.Context, settings *Settings, ca CA, id string) (*client, error) {
	acc, err := t.account(ctx, settings, ca, id)
	if err != nil {
		return nil, err
	}
	c, err := connect(t.newTransport(ca.Directory, settings.HTTP), t.agent, ca.Directory, acc.URL, acc)
	if err != nil {
		return nil, err
	}
	if acc.URL == "" {
		if err := t.register(ctx, c, ca, settings.Email); err != nil {
			return nil, err
		}
		return c, nil
	}
	if acc.Email != settings.Email {
		t.setContact(ctx, c, settings.Email)
	}
	return c, nil
}

// account reads the account's record, or makes one with a new key when that can't hide a loss.
func (t *term) account(ctx context.Context, settings *Settings, ca CA, id string) (*store.Account, error) {
	e, err := t.store.Get(ctx, store.Key{Kind: store.KindAccount, Name: id})
	if err == nil {
		return e.Record.(*store.Account), nil
	}
	if !errors.Is(err, store.ErrAbsent) {
		return nil, &failure{class: classAccount, err: fmt.Errorf("read account %s: %w", id, err)}
	}
	if !settings.NewAccount {
		if acc, err := t.accountKept(ctx, id); acc != nil || err != nil {
			return acc, err
		}
		if err := t.accountLost(ctx, ca.Directory, id); err != nil {
			return nil, err
		}
	}
	key, err := newKey("ec256")
	if err != nil {
		return nil, err
	}
	acc := &store.Account{ID: id, CA: ca.Directory, Email: settings.Email, Private: store.NewSecret(key)}
	pre := []store.Precondition{{Key: acc.Key()}}
	if err := t.commit(ctx, pre, []store.Op{store.Put(acc)}); err != nil {
		return nil, fmt.Errorf("store account %s: %w", id, err)
	}
	return acc, nil
}

// accountKept puts the account back from this process's copy; nil when there is none.
func (t *term) accountKept(ctx context.Context, id string) (*store.Account, error) {
	if t.copy == nil {
		return nil, nil
	}
	acc, err := get[*store.Account](ctx, t.copy, store.KindAccount, id)
	if acc == nil || err != nil {
		return nil, err
	}
	if err := t.commit(ctx, []store.Precondition{{Key: acc.Key()}}, []store.Op{store.Put(acc)}); err != nil {
		return nil, fmt.Errorf("put back account %s: %w", id, err)
	}
	t.log.Warn("the account was lost in the store and is put back from this node's copy", "account", id)
	return acc, nil
}

// accountLost says why a missing record must not simply be made anew: certificates of this CA are there, and
// the account that ordered them is not. Another account at the CA means that the binding was changed on purpose.
func (t *term) accountLost(ctx context.Context, directory, id string) error {
	accounts, err := t.store.List(ctx, store.KindAccount)
	if err != nil {
		return fmt.Errorf("look for account %s: %w", id, err)
	}
	if slices.ContainsFunc(accounts.Entries, func(e store.Entry) bool { return e.Record.(*store.Account).CA == directory }) {
		return nil
	}
	issued, err := t.store.List(ctx, store.KindIssued)
	if err != nil {
		return fmt.Errorf("look for account %s: %w", id, err)
	}
	n := slices.IndexFunc(issued.Entries, func(e store.Entry) bool { return e.Record.(*store.Certificate).CA == directory })
	if n < 0 {
		return nil
	}
	return &failure{class: classAccount, err: fmt.Errorf("account %s is not in the store, but certificate %s of %s is: "+
		"restore the store, or start the sidecar once with --new-account", id, issued.Entries[n].Key.Name, directory)}
}

func (t *term) register(ctx context.Context, c *client, ca CA, email string) error {
	req := acme.Account{TermsOfServiceAgreed: true, Contact: contact(email)}
	if ca.EABKeyID == "" && c.core.GetDirectory().Meta.ExternalAccountRequired {
		return &failure{class: classAccount, err: errors.New("register account: externalAccountRequired; " + remedies["externalAccountRequired"])}
	}
	got, err := retry(ctx, c.transport, func() (acme.ExtendedAccount, error) {
		if ca.EABKeyID != "" {
			return c.core.Accounts.NewEAB(req, ca.EABKeyID, ca.EABKey)
		}
		return c.core.Accounts.New(req)
	})
	if err != nil {
		f := fail(fmt.Errorf("register account: %w", err))
		if f.class == classDomain || f.class == classRefused {
			f.class = classAccount
		}
		return f
	}
	if got.Location == "" {
		return errors.New("register account: the CA did not say where the account is")
	}
	acc := *c.account
	acc.URL, acc.Email, acc.Registered = got.Location, email, time.Now().UTC()
	if err := t.commit(ctx, nil, []store.Op{store.Put(&acc)}); err != nil {
		return fmt.Errorf("store account %s: %w", acc.ID, err)
	}
	c.account = &acc
	t.log.Info("account registered", "ca", ca.Directory, "account", acc.ID)
	return nil
}

// setContact brings a changed address to the CA. A failure costs nothing but the news.
func (t *term) setContact(ctx context.Context, c *client, email string) {
	acc := *c.account
	_, err := retry(ctx, c.transport, func() (acme.Account, error) {
		return c.core.Accounts.Update(acc.URL, acme.Account{Contact: contact(email)})
	})
	if err == nil {
		acc.Email = email
		err = t.commit(ctx, nil, []store.Op{store.Put(&acc)})
	}
	if err != nil {
		t.log.Warn("the account's address was not changed at the CA", "ca", c.directory, "err", fail(err))
		return
	}
	c.account = &acc
}

// accountUnknown handles a CA that says it does not know the account. The same key is registered again where that is
// allowed; a key is never replaced.
func (t *term) accountUnknown(ctx context.Context, c *client) error {
	settings, _ := t.current()
	if !settings.NewAccount {
		return nil
	}
	acc := *c.account
	acc.URL, acc.Registered = "", time.Time{}
	if err := t.commit(ctx, nil, []store.Op{store.Put(&acc)}); err != nil {
		return fmt.Errorf("store account %s: %w", acc.ID, err)
	}
	t.forget()
	return nil
}

func contact(email string) []string {
	if email == "" {
		return nil
	}
	return []string{"mailto:" + email}
}
