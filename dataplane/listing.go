package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/haproxytech/client-native/v5/models"
	"github.com/haproxytech/client-native/v5/runtime"
)

// listOnDisk writes the lines that the crt-list file lacks.
func (h *HAProxy) listOnDisk(ctx context.Context, p Place, jobs []*job, down error) {
	if p.Directory() {
		return
	}
	err := h.list.load(p.CrtList)
	var missing []string
	var running map[string]bool
	for _, j := range jobs {
		if j.err != nil && !barred(j.err) || j.disk != nil && j.stored.fresh {
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
			j.err = h.takeBack(ctx, p, j, fmt.Errorf("add to crt-list %s: %w: %w", p.CrtList, errContent, err))
			continue
		}
		if err != nil && !has(err, "already exists") {
			j.err = fmt.Errorf("add to crt-list %s: %w", p.CrtList, err)
			continue
		}
		j.swapped = true
		h.placePEM(j)
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
