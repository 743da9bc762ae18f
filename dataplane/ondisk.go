package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spoacme/spoacme/store"
)

// OnDisk returns what the file of a certificate holds, whoever wrote it; nil when there is no file, when nobody knows yet
// where files are, or when the leaf in it is known: the one with that fingerprint. Nothing is locked or changed, and
// HAProxy need not run.
func (h *HAProxy) OnDisk(ctx context.Context, name, known string) (*store.Bundle, error) {
	if err := store.ValidName(name); err != nil {
		return nil, fmt.Errorf("read certificate on disk: %w", err)
	}
	p, err := h.Locate(ctx)
	if err != nil {
		return nil, ctx.Err()
	}
	path := p.File(name)
	if known != "" && h.current(name, path, known) {
		return nil, nil
	}
	text, _, err := readFile(path, maxPEM)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate on disk: %w", err)
	}
	b, err := store.ParseBundle(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if b.Fingerprint == known {
		return nil, nil
	}
	return b, nil
}
