package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/haproxytech/client-native/v5/runtime"

	"github.com/spoacme/spoacme/store"
)

var (
	// errRetry marks a unit that was undone and may succeed when it is done again.
	errRetry = errors.New("done again")
	// errContent marks a certificate that HAProxy does not want. On disk it would keep HAProxy from starting.
	errContent = errors.New("HAProxy refuses the certificate")
)

const (
	maxTries = 6
	// margin is what a command may need in HAProxy's buffer beside its own bytes and client-native's.
	margin = 128
)

// stray is another tool's open transaction.
type stray struct {
	file, fingerprint string
	since             time.Time
}

// swap puts the bundle into HAProxy under a file name that HAProxy knows, and returns what HAProxy then
// serves. It returns success only when set, commit and reading back were done by one process. It gives up with
// ErrBusy when another tool's transaction is open.
func (h *HAProxy) swap(ctx context.Context, file string, b *store.Bundle) (Served, error) {
	begun := time.Now()
	var s Served
	var err error
	for try := range maxTries {
		if try > 0 && !pause(ctx, time.Duration(try)*20*time.Millisecond) {
			break
		}
		s, err = h.unitOnce(ctx, file, b)
		if err == nil || !transient(err) {
			break
		}
		h.log.Debug("swap is done again", "certificate", file, "err", err)
	}
	h.metrics.swapped(err, time.Since(begun))
	if err != nil {
		return Served{}, fmt.Errorf("swap certificate %s: %w", file, err)
	}
	return s, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unitOnce is the unit: no transaction open, set, the transaction is read back, commit, the certificate is read
// back, the same process.
func (h *HAProxy) unitOnce(ctx context.Context, file string, b *store.Bundle) (Served, error) {
	p, open, err := h.peek(ctx)
	if err != nil {
		return Served{}, err
	}
	if err := h.spared(p, file, b); err != nil {
		return Served{}, err
	}
	if open != "" {
		if err := h.clear(ctx, open); err != nil {
			return Served{}, err
		}
	} else {
		h.stray = stray{}
	}
	if err := h.fits(ctx, p, file, b); err != nil {
		return Served{}, err
	}
	if err := h.set(ctx, file, b); err != nil {
		return Served{}, err
	}
	if err := h.checkTransaction(ctx, file, b); err != nil {
		return Served{}, h.abort(ctx, file, err)
	}
	answer, err := h.wire.do(ctx, commitTimeout, func(c *runtime.SingleRuntime) error { return c.CommitCertificate(quoted(file)) })
	if err != nil {
		return Served{}, h.commitFailed(ctx, p, file, bytes.Contains(answer, []byte("Failed!")), fmt.Errorf("commit: %w", err))
	}
	return h.readBack(ctx, p, file, b)
}

// commitFailed undoes a unit whose commit failed. An answer that merely is not understood says nothing of the certificate.
func (h *HAProxy) commitFailed(ctx context.Context, p Process, file string, refused bool, err error) error {
	if !refused {
		return h.abort(ctx, file, err)
	}
	err = fmt.Errorf("%w: %w", errContent, err)
	if survives(p) {
		return h.abort(ctx, file, err)
	}
	h.wreck(p)
	return fmt.Errorf("%w; HAProxy %s can be given no certificate after that: reload it", err, p.Version)
}

// nobody is a name that no certificate has.
const nobody = "spoacme-no-such-certificate"

var ongoing = regexp.MustCompile(`ongoing transaction is about '(.*)' but you are trying`)

// peek returns the process that answers and the file of an open transaction. It asks for the end of a transaction
// that nobody has: the list of certificates would tell, too, but with many of them it keeps certificates locked.
func (h *HAProxy) peek(ctx context.Context) (Process, string, error) {
	answer, err := h.raw(ctx, "show info;abort ssl cert "+nobody)
	if err != nil {
		return Process{}, "", err
	}
	info, rest, _ := cut(answer, "\n\n")
	p, err := parseInfo([]byte(info))
	if err != nil {
		return Process{}, "", err
	}
	err = permission([]byte(rest))
	if has(err, "No ongoing transaction") {
		return p, "", nil
	}
	if m := ongoing.FindStringSubmatch(rest); m != nil {
		return p, m[1], nil
	}
	if err == nil {
		err = fmt.Errorf("look for transactions: not understood: %s", line(rest))
	}
	return Process{}, "", err
}

// fits refuses a payload that does not fit HAProxy's buffer.
func (h *HAProxy) fits(ctx context.Context, p Process, file string, b *store.Bundle) error {
	size, err := h.bufsize(ctx, p)
	if err != nil {
		return err
	}
	if n := len(b.PEM()) + len(quoted(file)) + margin; n > size {
		advice := 32768
		for advice < n {
			advice *= 2
		}
		return fmt.Errorf("%w: %d bytes, tune.bufsize is %d; write `tune.bufsize %d` in the global section and restart HAProxy, or use an ECDSA key or fewer names", ErrTooBig, n-margin, size, advice)
	}
	return nil
}

var transactionFor = regexp.MustCompile(`Transaction (created|updated) for certificate (.*)!`)

// set opens the transaction. HAProxy's answer must say that it is a new one, and for this certificate: HAProxy
// 2.6.12 puts a certificate into another one's open transaction.
func (h *HAProxy) set(ctx context.Context, file string, b *store.Bundle) error {
	answer, err := h.raw(ctx, "set ssl cert "+quoted(file)+" <<\n"+string(b.PEM()))
	if has(err, "Can't load the payload") || has(err, "unable to load") {
		return fmt.Errorf("set: %w: %w", errContent, err)
	}
	switch {
	case errors.As(err, new(*refusal)):
		return fmt.Errorf("set: %w", err)
	case err != nil: // HAProxy may have taken it all the same
		return h.abort(ctx, file, fmt.Errorf("set: %w", err))
	}
	m := transactionFor.FindSubmatch(answer)
	switch {
	case m == nil:
		return h.abort(ctx, file, fmt.Errorf("set: HAProxy's answer is not understood: %s", line(string(answer))))
	case string(m[2]) != file:
		other := string(m[2])
		h.metrics.aborted.Inc()
		h.log.Warn("aborted another tool's certificate transaction: HAProxy had put a certificate of ours into it; that tool has to begin again",
			"certificate", other)
		return h.abort(ctx, other, fmt.Errorf("set: it went into the transaction of %s: %w", other, errRetry))
	case string(m[1]) != "created":
		return h.abort(ctx, file, fmt.Errorf("set: another tool has a transaction for the same certificate: %w", errRetry))
	}
	return nil
}

// checkTransaction reads the open transaction back.
func (h *HAProxy) checkTransaction(ctx context.Context, file string, b *store.Bundle) error {
	s, err := h.show(ctx, "*"+file)
	if err != nil {
		return fmt.Errorf("read transaction: %w", err)
	}
	if s[0].Fingerprint != b.Fingerprint {
		return fmt.Errorf("the transaction holds certificate %q instead of %s: %w", s[0].Fingerprint, b.Fingerprint, errRetry)
	}
	return nil
}

func (h *HAProxy) readBack(ctx context.Context, before Process, file string, b *store.Bundle) (Served, error) {
	answer, err := h.raw(ctx, "show ssl cert "+quoted(file)+";show info")
	if err != nil && answer == nil {
		return Served{}, fmt.Errorf("read back: %w: %w", err, errRetry)
	}
	block, info, _ := cut(answer, "\n\n")
	s, err := oneServed(file, trim(block))
	if err != nil {
		return Served{}, fmt.Errorf("read back: %w: %w", err, errRetry)
	}
	after, err := parseInfo([]byte(info))
	if err != nil {
		return Served{}, fmt.Errorf("read back: %w: %w", err, errRetry)
	}
	if !after.same(before) {
		h.Poke()
		return Served{}, fmt.Errorf("read back: HAProxy was reloaded meanwhile: %w", errRetry)
	}
	if s.Fingerprint != b.Fingerprint {
		h.metrics.swaps.WithLabelValues("wrong").Inc()
		return Served{}, fmt.Errorf("read back: HAProxy serves %q instead of %s, something else replaces it: %w", s.Fingerprint, b.Fingerprint, errRetry)
	}
	return s, nil
}

// clear deals with an open transaction: ours, from a sidecar that was killed, is aborted; another tool's is
// waited for (ErrBusy), and aborted when nothing happened to it for long.
func (h *HAProxy) clear(ctx context.Context, file string) error {
	s, err := h.show(ctx, "*"+file)
	if err != nil {
		return err
	}
	found := stray{file: file, fingerprint: s[0].Fingerprint, since: time.Now()}
	h.mu.Lock()
	ours := h.wanted[found.fingerprint]
	h.mu.Unlock()
	if s[0].Status == "" { // it ended meanwhile
		return fmt.Errorf("a transaction of %s ended: %w", file, errRetry)
	}
	if ours {
		h.log.Info("abort a certificate transaction that a stopped sidecar left", "certificate", file)
		return h.abort(ctx, file, nil)
	}
	if found.file == h.stray.file && found.fingerprint == h.stray.fingerprint {
		found.since = h.stray.since
	}
	h.stray = found
	if open := time.Since(found.since); open < h.timing.patience {
		return fmt.Errorf("%w for %s since %s; it is waited for, and aborted after %s", ErrBusy, file,
			found.since.Format(time.TimeOnly), h.timing.patience)
	}
	h.log.Warn("abort another tool's certificate transaction: nothing happened to it for too long", "certificate", file, "open", time.Since(found.since).Round(time.Second).String())
	h.metrics.aborted.Inc()
	h.stray = stray{}
	return h.abort(ctx, file, nil)
}

// abort ends the transaction of file, also when ctx has ended, and returns cause, or why it could not.
func (h *HAProxy) abort(ctx context.Context, file string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, err := h.wire.do(ctx, 2*time.Second, func(c *runtime.SingleRuntime) error { return c.AbortCertificate(quoted(file)) })
	switch {
	case err == nil, has(err, "No ongoing transaction"):
		return cause
	case errors.Is(cause, ErrDown) && errors.Is(err, ErrDown): // that is one thing to say
		return cause
	}
	if cause != nil {
		return fmt.Errorf("%w (and the transaction could not be aborted: %w)", cause, err)
	}
	return fmt.Errorf("abort transaction of %s: %w", file, err)
}
