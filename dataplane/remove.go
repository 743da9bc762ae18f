package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/haproxytech/client-native/v5/runtime"

	"github.com/spoacme/spoacme/store"
)

// Remove takes a certificate out of HAProxy and off the disk: the crt-list line first, the file some time later by
// Run. A certificate that HAProxy needs to start, as far as can be told, stays unless force is set: the only one, or the
// first of its list, which clients without SNI get. Only HAProxy can tell; while it can't be asked, nothing is touched
// and the error is ErrDown, to be tried again: what it starts with meanwhile it has started with before.
func (h *HAProxy) Remove(ctx context.Context, name string, force bool) error {
	if err := store.ValidName(name); err != nil {
		return fmt.Errorf("remove certificate: %w", err)
	}
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.release()
	p, err := h.settle(ctx)
	if err == nil {
		err = h.remove(ctx, p, name, force)
	}
	if err != nil {
		return fmt.Errorf("remove certificate %s: %w", name, err)
	}
	return nil
}

func (h *HAProxy) remove(ctx context.Context, p Place, name string, force bool) error {
	file := p.File(name)
	inv, down := h.removable(ctx, p, file, force)
	switch {
	case errors.Is(down, ErrDown) && !force:
		return fmt.Errorf("HAProxy can't be asked whether it starts without it: %w", down)
	case down != nil && !errors.Is(down, ErrDown):
		return down
	}
	if err := h.removeFiles(p, file); err != nil {
		return err
	}
	_ = os.Remove(previousOf(file))
	h.forget(name)
	h.remember(name, "")
	h.mu.Lock()
	delete(h.states, name)
	delete(h.swaps, name)
	h.mu.Unlock()
	if down != nil {
		return nil // forced: a HAProxy that is not running will not find it
	}
	return h.removeRunning(ctx, inv, file)
}

// removeFiles deletes the line now and the PEM file later. In a certificate directory it is the file alone, at once: a
// HAProxy that is being started in the very moment fails and has to be started again, whatever the order.
func (h *HAProxy) removeFiles(p Place, file string) error {
	if p.Directory() {
		return removePEM(file)
	}
	if err := h.list.remove(p.CrtList, file); err != nil {
		return err
	}
	return h.doom(file)
}

// removable looks whether HAProxy could still start without the certificate.
func (h *HAProxy) removable(ctx context.Context, p Place, file string, force bool) (Inventory, error) {
	inv, err := h.Inventory(ctx)
	if err != nil || force || !slices.Contains(inv.Certificates, file) {
		return inv, err
	}
	only := slices.ContainsFunc(inv.Lists, func(l List) bool {
		return l.Path == p.CrtList && !slices.ContainsFunc(l.Entries, func(e Entry) bool { return e.File != file })
	})
	if only && !slices.ContainsFunc(inv.Certificates, func(c string) bool { return c != file && !inLists(inv, c) }) {
		return inv, fmt.Errorf("it is the only one of %s: HAProxy would not start without it unless the bind line has strict-sni or another certificate; ask again with --force if it has", p.CrtList)
	}
	return inv, nil
}

func inLists(inv Inventory, file string) bool {
	return slices.ContainsFunc(inv.Lists, func(l List) bool {
		return slices.ContainsFunc(l.Entries, func(e Entry) bool { return e.File == file })
	})
}

// removeRunning takes the certificate out of the running HAProxy.
func (h *HAProxy) removeRunning(ctx context.Context, inv Inventory, file string) error {
	for _, l := range inv.Lists {
		for i, e := range slices.Backward(l.Entries) {
			if e.File != file {
				continue
			}
			if i == 0 && !h.deletesDefault(ctx) {
				return fmt.Errorf("it is the first of %s and may be the default certificate of a bind line; it is gone from disk: reload HAProxy", l.Path)
			}
			line := int64(e.Line)
			entry := &line
			if e.Line == 0 {
				entry = nil
			}
			_, err := h.wire.do(ctx, commitTimeout, func(c *runtime.SingleRuntime) error {
				return c.DeleteCrtListEntry(quoted(l.Path), quoted(file), entry)
			})
			if err != nil {
				return fmt.Errorf("delete from crt-list %s (it is gone from disk; a reload completes it): %w", l.Path, err)
			}
		}
	}
	_, err := h.wire.do(ctx, h.timing.command, func(c *runtime.SingleRuntime) error { return c.DeleteCertificate(quoted(file)) })
	if err == nil || has(err, "Not found") || has(err, "not found") || has(err, "doesn't exist") {
		return nil
	}
	return fmt.Errorf("delete from HAProxy (it is gone from disk; a reload completes it): %w", err)
}

// deletesDefault reports whether HAProxy itself refuses to delete a default certificate: 2.2 deletes it.
func (h *HAProxy) deletesDefault(ctx context.Context) bool {
	p, err := h.Process(ctx)
	return err == nil && p.AtLeast(2, 6)
}
