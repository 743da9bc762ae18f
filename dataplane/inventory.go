package dataplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Inventory is what HAProxy has loaded.
type Inventory struct {
	Certificates []string // file names as HAProxy has them, in its order
	Transaction  string   // file whose transaction is open, "" when none is
	Lists        []List
}

// List is a crt-list file or a certificate directory that HAProxy has loaded.
type List struct {
	Path    string
	Entries []Entry
}

// Entry is a line of a List.
type Entry struct {
	File    string
	Line    int      // to delete it by; 0 when HAProxy gives none
	Options string   // between the brackets
	Filters []string // SNI filters; none: the names of the certificate
}

// Inventory reads what HAProxy has loaded.
func (h *HAProxy) Inventory(ctx context.Context) (Inventory, error) {
	var inv Inventory
	answer, err := h.raw(ctx, "show ssl cert")
	if err != nil {
		return inv, fmt.Errorf("list certificates: %w", err)
	}
	inv.Transaction, inv.Certificates = parseCerts(answer)
	lists, err := h.lists(ctx)
	if err != nil {
		return inv, err
	}
	for _, path := range lists {
		entries, err := h.entries(ctx, path)
		if err != nil {
			return inv, err
		}
		inv.Lists = append(inv.Lists, List{Path: path, Entries: entries})
	}
	return inv, nil
}

// lists returns the crt-lists and certificate directories that HAProxy has loaded.
func (h *HAProxy) lists(ctx context.Context) ([]string, error) {
	answer, err := h.raw(ctx, "show ssl crt-list")
	if err != nil {
		return nil, fmt.Errorf("list crt-lists: %w", err)
	}
	var out []string
	for l := range strings.Lines(string(answer)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			out = append(out, l)
		}
	}
	return out, nil
}

func (h *HAProxy) entries(ctx context.Context, list string) ([]Entry, error) {
	a, err := arg(list)
	if err != nil {
		return nil, err
	}
	answer, err := h.raw(ctx, "show ssl crt-list -n "+a)
	if err != nil {
		return nil, fmt.Errorf("read crt-list %s: %w", list, err)
	}
	var out []Entry
	for l := range strings.Lines(string(answer)) {
		if e, ok := parseEntry(l); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// parseEntry reads "FILE:LINE [options] filter filter".
func parseEntry(l string) (Entry, bool) {
	l = strings.TrimSpace(l)
	if l == "" || l[0] == '#' {
		return Entry{}, false
	}
	file, rest, _ := strings.Cut(l, " ")
	e := Entry{File: file}
	if i := strings.LastIndexByte(file, ':'); i > 0 {
		if n, err := strconv.Atoi(file[i+1:]); err == nil {
			e.File, e.Line = file[:i], n
		}
	}
	rest = strings.TrimSpace(rest)
	if strings.HasPrefix(rest, "[") {
		options, after, _ := strings.Cut(rest[1:], "]")
		e.Options, rest = strings.TrimSpace(options), after
	}
	e.Filters = strings.Fields(rest)
	return e, true
}

// parseCerts reads the answer to `show ssl cert`.
func parseCerts(answer []byte) (transaction string, files []string) {
	open := false
	for l := range strings.Lines(string(answer)) {
		l = strings.TrimRight(l, "\r\n")
		switch {
		case l == "":
		case strings.HasPrefix(l, "# transaction"):
			open = true
		case l[0] == '#':
			open = false
		case open:
			transaction = strings.TrimPrefix(l, "*")
		default:
			files = append(files, strings.TrimPrefix(l, `\`))
		}
	}
	return transaction, files
}

// arg quotes a word for HAProxy's command line.
func arg(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, "\n\r;") || strings.Contains(s, "<<") {
		return "", fmt.Errorf("name %q can't be said to HAProxy; rename it", s)
	}
	return strings.NewReplacer(`\`, `\\`, ` `, `\ `).Replace(s), nil
}

// Served is a certificate as HAProxy has it.
type Served struct {
	File        string
	Fingerprint string // SHA-1 of the leaf, upper-case hex; "" when HAProxy has none under this name
	Serial      string // lower-case hex, no leading zeros
	Status      string // "Used", "Unused", "Empty"
	Names       []string
	NotBefore   time.Time
	NotAfter    time.Time
	SelfSigned  bool
	Filters     []string // SNI filters of the crt-list; filled in by HAProxy.Served only
}

const served0 = "Filename: "

// parseServed reads one block of `show ssl cert FILE`. What it returns is kept for every certificate, so it holds on to nothing of
// the block.
func parseServed(block string) (s Served) {
	var subject, issuer string
	for l := range strings.Lines(block) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), ": ")
		switch k {
		case "Filename":
			s.File = strings.Clone(strings.TrimPrefix(v, `\`))
		case "Status":
			s.Status = strings.Clone(v)
		case "Serial":
			s.Serial = strings.Clone(strings.TrimLeft(strings.ToLower(v), "0"))
		case "SHA1 FingerPrint":
			s.Fingerprint = strings.Clone(strings.ToUpper(v))
		case "notBefore":
			s.NotBefore = date(v)
		case "notAfter":
			s.NotAfter = date(v)
		case "Subject":
			subject = v
		case "Issuer":
			issuer = v
		case "Subject Alternative Name":
			for _, n := range strings.Split(v, ", ") {
				s.Names = append(s.Names, strings.Clone(strings.ToLower(strings.TrimPrefix(n, "DNS:"))))
			}
		}
	}
	s.SelfSigned = subject == issuer && subject != ""
	return s
}

// date reads OpenSSL's form of a time, the zero time when it is none. HAProxy's are in GMT, for which time.Parse makes a
// location each time.
func date(v string) time.Time {
	t, _ := time.Parse("Jan _2 15:04:05 2006 MST", v)
	return t.UTC()
}

// show reads certificates by file name, in few commands. A file that HAProxy does not have gives a Served
// without Status.
func (h *HAProxy) show(ctx context.Context, files ...string) ([]Served, error) {
	out := make([]Served, 0, len(files))
	for len(files) > 0 {
		var sb strings.Builder
		n := 0
		for ; n < len(files) && n < 64 && sb.Len() < 6000; n++ {
			a, err := arg(files[n])
			if err != nil {
				return nil, err
			}
			if n > 0 {
				sb.WriteByte(';')
			}
			sb.WriteString("show ssl cert " + a)
		}
		answer, err := h.raw(ctx, sb.String())
		if err != nil && answer == nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		blocks := strings.Split(strings.Trim(string(answer), "\n"), "\n\n")
		if len(blocks) != n {
			if err == nil {
				err = errTruncated
			}
			return nil, fmt.Errorf("read certificates: %d answers to %d questions: %w", len(blocks), n, err)
		}
		for i, b := range blocks {
			s, err := oneServed(files[i], b)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
		files = files[n:]
	}
	return out, nil
}

func oneServed(file, block string) (Served, error) {
	if strings.HasPrefix(block, served0) {
		if s := parseServed(block); s.File == file && s.Status != "" {
			return s, nil
		}
		return Served{}, fmt.Errorf("read certificate %s: HAProxy's answer is of another certificate or not whole", file)
	}
	if strings.Contains(block, "Not found") {
		return Served{File: file}, nil
	}
	if err := refused([]byte(block)); err != nil {
		return Served{}, fmt.Errorf("read certificate %s: %w", file, err)
	}
	return Served{}, fmt.Errorf("read certificate %s: not understood: %s", file, line(block))
}

// Served reads what HAProxy serves for a certificate; without Status when it has none of this name.
func (h *HAProxy) Served(ctx context.Context, name string) (Served, error) {
	p, err := h.Locate(ctx)
	if err != nil {
		return Served{}, err
	}
	s, err := h.show(ctx, p.File(name))
	if err != nil {
		return Served{}, err
	}
	entries, err := h.entries(ctx, p.CrtList)
	if err != nil {
		return Served{}, err
	}
	for _, e := range entries {
		if e.File == s[0].File {
			s[0].Filters = append(s[0].Filters, e.Filters...)
		}
	}
	return s[0], nil
}

// File is the PEM file of a certificate.
func (p Place) File(name string) string { return filepath.Join(p.CrtDir, name+".pem") }

// Directory reports whether certificates are added to a certificate directory (`crt DIR/`).
func (p Place) Directory() bool {
	if p.CrtList == p.CrtDir {
		return true
	}
	fi, err := os.Stat(p.CrtList)
	return err == nil && fi.IsDir()
}

// Locate finds where certificates go: what the settings say, else the only crt-list or certificate directory
// that HAProxy has loaded; PEM files beside the crt-list. With HAProxy down it is the place of last time.
func (h *HAProxy) Locate(ctx context.Context) (Place, error) {
	h.mu.Lock()
	p, asked := h.place, h.asked
	h.mu.Unlock()
	if p.CrtDir != "" {
		return p, nil
	}
	loaded, err := h.lists(ctx)
	if err != nil {
		if p, ok := h.lastPlace(asked); ok {
			return p, nil
		}
		return Place{}, fmt.Errorf("find the crt-list: %w", err)
	}
	p, err = choose(asked, loaded)
	if err != nil {
		return Place{}, err
	}
	h.mu.Lock()
	if h.asked == asked {
		h.place = p
	}
	h.mu.Unlock()
	return p, nil
}

func choose(asked Place, loaded []string) (Place, error) {
	p := asked
	switch {
	case p.CrtList != "":
		i := slices.IndexFunc(loaded, func(l string) bool { return filepath.Clean(l) == p.CrtList })
		if i >= 0 {
			p.CrtList = loaded[i] // in HAProxy's own spelling
			break
		}
		return Place{}, fmt.Errorf("HAProxy has not loaded the crt-list %s (loaded: %s); name it on a bind line, or correct SPOACME_CRT_LIST", p.CrtList, listOf(loaded))
	case len(loaded) == 1:
		p.CrtList = loaded[0]
	case len(loaded) == 0:
		return Place{}, fmt.Errorf("HAProxy has loaded neither a crt-list nor a certificate directory; write `bind :443 ssl strict-sni crt-list /etc/haproxy/spoacme/crt-list` and reload")
	default:
		return Place{}, fmt.Errorf("HAProxy has loaded several crt-lists or certificate directories (%s); choose with `setenv SPOACME_CRT_LIST …`", listOf(loaded))
	}
	if p.CrtDir == "" {
		p.CrtDir = filepath.Dir(p.CrtList)
		if fi, err := os.Stat(p.CrtList); err == nil && fi.IsDir() {
			p.CrtDir = p.CrtList
		}
	}
	if p.CrtDir != p.CrtList && p.Directory() {
		return Place{}, fmt.Errorf("HAProxy loads the certificates of directory %s, so they can't be kept in %s; drop SPOACME_CRT_DIR, or use a crt-list", p.CrtList, p.CrtDir)
	}
	for _, path := range []string{p.CrtDir, p.CrtList} {
		if !filepath.IsAbs(path) {
			return Place{}, fmt.Errorf("path %q is relative to HAProxy's working directory; write an absolute path", path)
		}
	}
	return p, nil
}

func listOf(paths []string) string {
	if len(paths) == 0 {
		return "none"
	}
	if len(paths) > 8 {
		return strings.Join(paths[:8], ", ") + ", …"
	}
	return strings.Join(paths, ", ")
}

// quoted is arg for a name that was looked at before.
func quoted(file string) string {
	a, err := arg(file)
	if err != nil {
		return "-"
	}
	return a
}
