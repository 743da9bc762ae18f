package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"
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
	stored  stored // what the file held
	staged  *renameio.PendingFile
	placed  bool  // staged is where HAProxy looks for it
	created bool  // by `new ssl cert`
	swapped bool  // HAProxy was given the certificate
	disk    error // the file or its line could not be written
	err     error
	common  bool // err is not of this certificate: HAProxy could not be asked
}

// Deploy makes HAProxy serve the certificate, now and after a restart: the certificate is swapped in as one unit and read
// back, a new one added to the crt-list, the PEM file and its line are written. What is there already is not touched. An
// error may come with a Served: what could not be written to disk is served all the same. It waits while another
// tool's transaction is open.
func (h *HAProxy) Deploy(ctx context.Context, u Unit) (Served, error) {
	if err := store.ValidName(u.Name); err != nil {
		return Served{}, fmt.Errorf("deploy certificate: %w", err)
	}
	for {
		j := &job{name: u.Name, want: u.Bundle.Fingerprint, b: u.Bundle}
		if err := h.applyAll(ctx, []*job{j}); err != nil {
			if j.common || ctx.Err() != nil { // err says it
				j.err = nil
			}
			return Served{}, fmt.Errorf("deploy certificate %s: %w", u.Name, errors.Join(err, j.err, j.disk))
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

// apply brings certificates into HAProxy and onto disk. First the swaps, then the running crt-list, each PEM file as soon as
// HAProxy has taken the certificate, then the crt-list on disk: so whatever a line names is there, and what is there is what
// HAProxy itself found good. The other way round, with the files first, a certificate that HAProxy refuses would lie over a
// good one while it is tried, and after a crash for ever: HAProxy would not start. What a crash leaves this way is a file that
// is older than what HAProxy serves. It starts with that, too, and the next comparison writes the file. The new file lies
// ready beforehand and is only renamed, because a reload just then reads the old one. The error of apply is why HAProxy could
// not be asked.
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
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.prepare(ctx, jobs, down)
	if down == nil {
		h.swapAll(ctx, p, jobs)
		h.listInHAProxy(ctx, p, jobs)
	}
	h.storeAll(jobs, down)
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

// prepare loads what must be changed, looks at its files and writes new ones, which lie aside for now. With HAProxy down there is only the file to compare with.
func (h *HAProxy) prepare(ctx context.Context, jobs []*job, down error) {
	var todo []*job
	for _, j := range jobs {
		if j.b == nil && (down != nil || j.before.Fingerprint == j.want) && h.current(j.name, j.file, j.want) {
			continue
		}
		todo = append(todo, j)
	}
	atOnce(todo, func(j *job) { h.prepareOne(ctx, j) })
}

// atOnce calls f for all jobs, for some at once: each waits for the store or the disk.
func atOnce(jobs []*job, f func(*job)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, j := range jobs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(j)
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
		j.err = fmt.Errorf("%w that HAProxy serves (serial %s, valid from %s); the store's is older: run 'spoacme renew %s'",
			ErrHeld, j.before.Serial, j.before.NotBefore.UTC().Format(time.DateTime), j.name)
		return
	}
	j.stored, j.disk = h.lookPEM(j.name, j.file, j.b)
	switch {
	case errors.Is(j.disk, ErrHeld):
		j.err, j.disk = j.disk, nil
	case j.stored.changed && h.refused[j.name] != j.want:
		j.staged, j.disk = stage(j.file, j.b.PEM(), keyMode)
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
func (h *HAProxy) swapAll(ctx context.Context, p Place, jobs []*job) {
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
			j.err = h.takeBack(ctx, p, j, err)
			continue
		}
		j.after, j.swapped = s, true
		if s.Status == "Used" { // else it is not judged yet
			h.placePEM(j)
		}
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
func (h *HAProxy) takeBack(ctx context.Context, p Place, j *job, cause error) error {
	if j.created {
		_, _ = h.wire.do(ctx, h.timing.command, func(c *runtime.SingleRuntime) error { return c.DeleteCertificate(quoted(j.file)) })
	}
	if !errors.Is(cause, errContent) {
		return cause
	}
	if err := h.refuse(p, j); err != nil {
		return fmt.Errorf("%w (and the file could not be put back: %w)", cause, err)
	}
	return cause
}
