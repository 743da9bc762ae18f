package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Conditions that callers may want to tell apart.
var (
	// ErrDown means that HAProxy can't be reached: not running, no socket, no permission, no answer.
	ErrDown = errors.New("HAProxy can't be reached")
	// ErrBusy means that another tool has a certificate transaction open in HAProxy.
	ErrBusy = errors.New("another tool's certificate transaction is open")
	// ErrHeld means that the certificate was left alone because what is there is better.
	ErrHeld = errors.New("kept the better certificate")
	// ErrUnused means that HAProxy has the certificate and no bind line uses it.
	ErrUnused = errors.New("no bind line uses the certificate")
	// ErrLocked means that another spoacme looks after the same certificates.
	ErrLocked = errors.New("another spoacme looks after the same certificates")
	// errSource means that the source does not tell what should be served.
	errSource = errors.New("list certificates of the store")
	// ErrTooBig means that the certificate does not fit HAProxy's buffer.
	ErrTooBig = errors.New("the certificate does not fit HAProxy's buffer")
)

// heldBack is why a certificate is not deployed although there is nothing better: it is ErrHeld with a text of its own.
type heldBack struct{ error }

func (e heldBack) Unwrap() error        { return e.error }
func (e heldBack) Is(target error) bool { return target == ErrHeld }

// refusal is an error that HAProxy answered with.
type refusal struct{ text string }

func (r *refusal) Error() string { return "HAProxy: " + r.text }

// has reports whether err is a refusal that says what.
func has(err error, what string) bool {
	var r *refusal
	return errors.As(err, &r) && strings.Contains(r.text, what)
}

// transient reports whether the unit may succeed when it is done again.
func transient(err error) bool {
	return has(err, "currently locked") || has(err, "The ongoing transaction is about") ||
		has(err, "No ongoing transaction") || errors.Is(err, errRetry)
}

var (
	secretPattern = regexp.MustCompile(`-----BEGIN[^-]*-----|[A-Za-z0-9+/=]{60,}`)
	severity      = regexp.MustCompile(`^\[([0-9])\]:\s*`)
)

// refused returns *refusal when the answer is an error message.
func refused(answer []byte) error {
	if tooBig(answer) {
		return &refusal{"the command is too big for the buffer; set tune.bufsize 32768 in the global section and restart HAProxy"}
	}
	text := bytes.TrimSpace(answer)
	m := severity.FindSubmatch(text)
	if m == nil || m[1][0] > '3' && !bytes.Contains(text, []byte("Unknown command")) {
		return nil
	}
	said := string(text[len(m[0]):])
	switch {
	case strings.HasPrefix(said, "Unknown command"):
		said = "it does not know the command; HAProxy 2.2 or newer is needed"
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Can't allocate memory"):
		return &refusal{"permission denied: write `level admin` at the end of the `stats socket` line and restart HAProxy"}
	}
	return &refusal{line(said)}
}

// tooBig recognises the one message that HAProxy ends without an empty line.
func tooBig(answer []byte) bool {
	return bytes.Contains(answer, []byte("too big for the buffer size"))
}

// line makes one short line of what HAProxy said, without anything that could be of a key.
func line(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }), "; ")
	s = secretPattern.ReplaceAllString(s, "[hidden]")
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}

// scrub cuts the payload, private key included, that client-native puts into its errors.
func scrub(err error) error {
	s, _, _ := strings.Cut(err.Error(), "<<")
	return errors.New(line(s))
}

// explain says what to do about an error on the way to HAProxy.
func (w *wire) explain(err error) error {
	var text string
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		text = "it accepts but does not answer; is something else listening there, or is HAProxy overloaded?"
	case errors.Is(err, errTruncated), errors.Is(err, errTooLong):
		text = err.Error() + "; is it HAProxy's stats socket (not the master socket), and was HAProxy restarted just now?"
	case errors.Is(err, fs.ErrNotExist):
		text = "no such socket; start HAProxy, or give the path of its `stats socket` line with --socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		text = "nobody listens; start HAProxy"
	case errors.Is(err, fs.ErrPermission):
		text = permissionRemedy(w.socket)
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		text = line(err.Error())
	}
	return fmt.Errorf("%w: socket %s: %s", ErrDown, w.socket, text)
}

// permissionRemedy names the group to join.
func permissionRemedy(socket string) string {
	for dir := filepath.Dir(socket); ; dir = filepath.Dir(dir) {
		if syscall.Access(dir, 1) != nil {
			return fmt.Sprintf("permission denied at %s (%s); %s", dir, Ownership(dir), join(dir))
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	fi, err := os.Stat(socket)
	if err != nil {
		return "permission denied"
	}
	if fi.Mode().Perm()&0o060 != 0o060 {
		return fmt.Sprintf("permission denied (%s); write `mode 660 group GROUP` on the `stats socket` line, with a group of this user, and restart HAProxy", Ownership(socket))
	}
	return fmt.Sprintf("permission denied (%s); %s", Ownership(socket), join(socket))
}

// Ownership describes who may use a path: "root:haproxy 0660".
func Ownership(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return "unknown owner"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "unknown owner"
	}
	uid := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(uid); err == nil {
		uid = u.Username
	}
	return fmt.Sprintf("%s:%s %#o", uid, group(st.Gid), fi.Mode().Perm())
}

func group(gid uint32) string {
	id := strconv.Itoa(int(gid))
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

func join(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return "run spoacme as a user that may"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return "it belongs to group root: write `group haproxy` on the `stats socket` line and join that group"
	}
	me := "USER"
	if u, err := user.Current(); err == nil {
		me = u.Username
	}
	return fmt.Sprintf("join group %s: usermod -aG %[1]s %s, then restart spoacme", group(st.Gid), me)
}

// cut splits an answer at the first sep.
func cut(answer []byte, sep string) (before, after string, found bool) {
	return strings.Cut(strings.TrimLeft(string(answer), "\n"), sep)
}

func trim(s string) string { return strings.Trim(s, "\n") }

// permission finds "permission denied" among the answers to several commands.
func permission(answer []byte) error {
	for _, block := range bytes.Split(answer, []byte("\n\n")) {
		if err := refused(block); err != nil {
			return err
		}
	}
	return nil
}
