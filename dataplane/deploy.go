package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haproxytech/client-native/v5/models"
	"github.com/haproxytech/client-native/v5/runtime"

	"github.com/spoacme/spoacme/store"
)

// Unit is a certificate to deploy.
type Unit struct {
	Name   string
	Bundle *store.Bundle
}

// job is one certificate on its way into HAProxy.
type job struct {
	name, file string
	want       string // fingerprint
	load       func(context.Context) (*store.Bundle, error)

	b       *store.Bundle
	before  Served // what HAProxy has
	after   Served
	stored  stored
	created bool  // by `new ssl cert`
	swapped bool  // HAProxy was given the certificate
	disk    error // the file or its line could not be written
	err     error
	common  bool // err is not of this certificate: HAProxy could not be asked
}

// Deploy makes HAProxy serve the certificate, now and after a restart: the PEM file is written, the certificate
// swapped in as one unit and read back, a new one added to the crt-list. What is there already is not touched. An
// error may come with a Served: what could not be written to disk is served all the same. It waits while another
// tool's transaction is open.
func (h *HAProxy) Deploy(ctx context.Context, u Unit) (Served, error) {
	if err := store.ValidName(u.Name); err != nil {
		return Served{}, fmt.Errorf("deploy certificate: %w", err)
	}
	for {
		j := &job{name: u.Name, want: u.Bundle.Fingerprint, b: u.Bundle}
		if err := h.applyAll(ctx, []*job{j}); err != nil {
			return Served{}, fmt.Errorf("deploy certificate %s: %w", u.Name, errors.Join(err, j.disk))
		}
		if errors.Is(j.err, ErrBusy) && pause(ctx, 250*time.Millisecond) {
			continue
		}
		if err := errors.Join(j.err, j.disk); err != nil {
			return j.after, fmt.Errorf("deploy certificate %s: %w", u.Name, err)
		}
		return j.after, nil
	}
}

// applyAll finds out where certificates go and applies the jobs. Its error means that nothing was done, or with
// *unasked that only files were written; what went wrong with single certificates is in the jobs.
func (h *HAProxy) applyAll(ctx context.Context, jobs []*job) error {
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.release()
	p, err := h.settle(ctx)
	if err != nil {
		return err
	}
	if err := h.apply(ctx, p, jobs); err != nil && ctx.Err() == nil {
		return &unasked{err}
	}
	return ctx.Err()
}

// unasked is why HAProxy could not be asked; files were written all the same.
type unasked struct{ error }

func (u *unasked) Unwrap() error { return u.error }

// settle returns where certificates go, locked for this process.
func (h *HAProxy) settle(ctx context.Context) (Place, error) {
	p, err := h.Locate(ctx)
	if err != nil {
		return Place{}, err
	}
	if err := h.lockDir(p.CrtDir); err != nil {
		return Place{}, err
	}
	if p != h.saved {
		if err := h.savePlace(p); err != nil {
			h.log.Warn("could not keep where certificates go", "err", err)
		}
		h.saved = p
	}
	return p, nil
}

// apply brings certificates onto disk and into HAProxy. First all PEM files, then all swaps, then the running
// crt-list, then the crt-list on disk: so whatever a line names is there, and is what HAProxy itself found good. Its
// error is why HAProxy could not be asked.
func (h *HAProxy) apply(ctx context.Context, p Place, jobs []*job) error {
	for _, j := range jobs {
		j.file = p.File(j.name)
	}
	h.mu.Lock()
	for _, j := range jobs {
		h.wanted[j.want] = true
	}
	h.mu.Unlock()
	if len(jobs) == 0 {
		return nil
	}
	down := h.look(ctx, jobs)
	h.prepare(ctx, jobs, down)
	if down == nil {
		h.swapAll(ctx, jobs)
	}
	if down == nil {
		h.listInHAProxy(ctx, p, jobs)
	}
	h.listOnDisk(ctx, p, jobs, down)
	if ctx.Err() != nil {
		return down
	}
	for _, j := range jobs {
		if j.err == nil && down != nil {
			j.err, j.common = down, true
		}
		h.record(j)
	}
	return down
}

// look reads what HAProxy has. Its error means that HAProxy can't be asked.
func (h *HAProxy) look(ctx context.Context, jobs []*job) error {
	files := make([]string, len(jobs))
	for i, j := range jobs {
		files[i] = j.file
	}
	all, err := h.show(ctx, files...)
	if err != nil {
		return err
	}
	for i, j := range jobs {
		j.before, j.after = all[i], all[i]
	}
	return nil
}

// prepare loads what must be changed and writes the PEM files, some at once: each waits for the disk. With HAProxy down
// there is only the file to compare with.
func (h *HAProxy) prepare(ctx context.Context, jobs []*job, down error) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, j := range jobs {
		if j.b == nil && (down != nil || j.before.Fingerprint == j.want) && h.current(j.name, j.file, j.want) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			h.prepareOne(ctx, j)
		})
	}
	wg.Wait()
}

func (h *HAProxy) prepareOne(ctx context.Context, j *job) {
	if j.b == nil {
		b, err := j.load(ctx)
		if err != nil {
			j.err = fmt.Errorf("load certificate: %w", err)
			return
		}
		j.b, j.want = b, b.Fingerprint
	}
	if newer(j.before, j.b) {
		j.err = fmt.Errorf("%w that HAProxy serves (serial %s, valid from %s); the store's is older: import it, or renew",
			ErrHeld, j.before.Serial, j.before.NotBefore.UTC().Format(time.DateTime))
		return
	}
	j.stored, j.disk = h.storePEM(j.name, j.file, j.b)
	if errors.Is(j.disk, ErrHeld) {
		j.err, j.disk = j.disk, nil
	}
}

// newer reports whether HAProxy serves, for all names of b, a good certificate that was issued later: somebody
// renewed past the store.
func newer(s Served, b *store.Bundle) bool {
	if s.Fingerprint == "" || s.Fingerprint == b.Fingerprint || s.SelfSigned ||
		!s.NotBefore.After(b.NotBefore) || !s.NotAfter.After(time.Now()) {
		return false
	}
	for _, d := range b.Domains {
		if !slices.Contains(s.Names, d) {
			return false
		}
	}
	return true
}

// swapAll gives HAProxy what it does not have.
func (h *HAProxy) swapAll(ctx context.Context, jobs []*job) {
	for _, j := range jobs {
		if j.err != nil || j.b == nil {
			continue
		}
		same := j.before.Fingerprint == j.want
		if same && (!j.stored.changed || j.stored.fresh) {
			continue
		}
		if j.before.Status == "" {
			if j.err = h.create(ctx, j); j.err != nil {
				continue
			}
		}
		s, err := h.swap(ctx, j.file, j.b)
		if err != nil {
			j.err = h.takeBack(ctx, j, err)
			continue
		}
		j.after, j.swapped = s, true
	}
}

// create makes HAProxy know the file name.
func (h *HAProxy) create(ctx context.Context, j *job) error {
	_, err := h.wire.do(ctx, h.timing.command, func(c *runtime.SingleRuntime) error { return c.NewCertificate(quoted(j.file)) })
	if has(err, "already exists") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("new certificate: %w", err)
	}
	j.created = true
	return nil
}

// takeBack undoes what must not stay after a swap that failed: an empty certificate in HAProxy, and on disk what
// HAProxy does not want to load.
func (h *HAProxy) takeBack(ctx context.Context, j *job, cause error) error {
	if j.created {
		_, _ = h.wire.do(ctx, h.timing.command, func(c *runtime.SingleRuntime) error { return c.DeleteCertificate(quoted(j.file)) })
	}
	switch {
	case errors.Is(cause, errContent):
		if err := h.unstorePEM(j.name, j.file, j.stored); err != nil {
			return fmt.Errorf("%w (and the file could not be put back: %w)", cause, err)
		}
		j.stored = stored{}
	case errors.Is(cause, ErrTooBig):
		return fmt.Errorf("%w; the file is written, so a reload takes it too", cause)
	}
	return cause
}

// listOnDisk writes the lines that the crt-list file lacks.
func (h *HAProxy) listOnDisk(ctx context.Context, p Place, jobs []*job, down error) {
	if p.Directory() {
		return
	}
	err := h.list.load(p.CrtList)
	var missing []string
	var running map[string]bool
	for _, j := range jobs {
		if j.err != nil && !errors.Is(j.err, ErrTooBig) || j.disk != nil && j.stored.fresh {
			continue // no line without its file
		}
		if err == nil && h.list.has(j.file) {
			continue
		}
		need := j.before.Status != "Used"
		if down != nil {
			// It can't be asked whether another list names the file; twice does no harm, and a file without its line is
			// what a crash between the two leaves.
			need = true
		}
		if !need && down == nil {
			if running == nil {
				running = h.running(ctx, p)
			}
			need = running[j.file]
		}
		switch {
		case need && err != nil:
			j.disk = errors.Join(j.disk, err)
		case need:
			missing = append(missing, j.file)
		}
	}
	if err := h.list.add(p.CrtList, missing); err != nil {
		for _, j := range jobs {
			if slices.Contains(missing, j.file) {
				j.disk = errors.Join(j.disk, err)
			}
		}
	}
}

// running returns the files in the running crt-list; empty when HAProxy can't be asked.
func (h *HAProxy) running(ctx context.Context, p Place) map[string]bool {
	out := map[string]bool{}
	entries, err := h.entries(ctx, p.CrtList)
	if err != nil {
		return out
	}
	for _, e := range entries {
		out[e.File] = true
	}
	return out
}

// listInHAProxy adds to the running crt-list what no bind line uses yet, and looks whether one does now.
func (h *HAProxy) listInHAProxy(ctx context.Context, p Place, jobs []*job) {
	var added []*job
	for _, j := range jobs {
		if j.err != nil || j.after.Status != "Unused" {
			continue
		}
		_, err := h.wire.do(ctx, commitTimeout, func(c *runtime.SingleRuntime) error {
			return c.AddCrtListEntry(quoted(p.CrtList), models.SslCrtListEntry{File: quoted(j.file)})
		})
		if has(err, "Failed!") {
			j.err = h.takeBack(ctx, j, fmt.Errorf("add to crt-list %s: %w: %w", p.CrtList, errContent, err))
			continue
		}
		if err != nil && !has(err, "already exists") {
			j.err = fmt.Errorf("add to crt-list %s: %w", p.CrtList, err)
			continue
		}
		j.swapped = true
		added = append(added, j)
	}
	if len(added) == 0 {
		return
	}
	files := make([]string, len(added))
	for i, j := range added {
		files[i] = j.file
	}
	all, err := h.show(ctx, files...)
	for i, j := range added {
		switch {
		case err != nil:
			j.err = fmt.Errorf("read back: %w", err)
		case all[i].Fingerprint != j.want:
			j.after, j.err = all[i], fmt.Errorf("read back: HAProxy serves %q instead of %s: %w", all[i].Fingerprint, j.want, errRetry)
		case all[i].Status != "Used":
			j.after, j.err = all[i], fmt.Errorf("%w %s: no bind line has loaded %s; correct SPOACME_CRT_LIST", ErrUnused, j.file, p.CrtList)
		default:
			j.after = all[i]
		}
	}
}
