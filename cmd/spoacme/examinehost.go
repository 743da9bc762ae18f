package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spoacme/spoacme/check"
	"github.com/spoacme/spoacme/dataplane"
	"github.com/spoacme/spoacme/settings"
	"github.com/spoacme/spoacme/status"
)

// place looks at the folder of the certificates.
func (e *examiner) place(ctx context.Context) {
	p := &e.facts.Place
	place, err := e.hap.Locate(ctx)
	if err != nil {
		p.Err = err
		return
	}
	p.CrtList, p.CrtDir, p.Directory = place.CrtList, place.CrtDir, place.Directory()
	p.WriteErr = writable(place)
	if p.Directory {
		version := e.facts.HAProxy.Version
		p.Lines, p.Stray = strays(place.CrtList, strings.HasPrefix(version, "2.2.") || version == "")
	} else {
		p.Lines, p.Missing, p.ListErr = listed(place.CrtList)
	}
	files, _ := filepath.Glob(filepath.Join(place.CrtDir, "*.pem"))
	for _, file := range files {
		fi, err := os.Stat(file)
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		p.Largest = max(p.Largest, int(fi.Size()))
		if fi.Mode().Perm()&0o007 != 0 {
			p.Exposed = append(p.Exposed, file)
		}
	}
}

// Bits of access(2).
const (
	mayExecute = 1
	mayWrite   = 2
)

// writable says why files can't be written beside the crt-list, and where PEM files go.
func writable(p dataplane.Place) error {
	dirs := []string{p.CrtDir, filepath.Dir(p.CrtList)}
	if p.Directory() {
		dirs = []string{p.CrtDir, p.CrtList}
	}
	for _, dir := range slices.Compact(dirs) {
		switch err := syscall.Access(dir, mayWrite|mayExecute); {
		case err == nil:
		case errors.Is(err, syscall.ENOENT):
			return fmt.Errorf("directory %s does not exist: create it, and let the sidecar's user write to it", dir)
		case errors.Is(err, syscall.EROFS):
			return fmt.Errorf("%s is on a read-only file system: mount it read-write, or allow it (ReadWritePaths=%s)", dir, dir)
		default:
			return fmt.Errorf("%s can't write to %s (%s): give the sidecar's user write permission there", userName(os.Geteuid()), dir, dataplane.Ownership(dir))
		}
	}
	return nil
}

// listed reads a crt-list: how many certificates it names, and which of them are not there.
func listed(path string) (lines int, missing []string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, fmt.Errorf("%s, which HAProxy has loaded, is gone: HAProxy will not start again: put it back (an empty file is a beginning)", path)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read %s (%s): %w: make it readable for the sidecar's user", path, dataplane.Ownership(path), errors.Unwrap(err))
	}
	for l := range strings.Lines(string(text)) {
		fields := strings.Fields(l)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		lines++
		file, _, _ := strings.Cut(fields[0], "[")
		if _, err := os.Stat(file); filepath.IsAbs(file) && errors.Is(err, fs.ErrNotExist) && !bundled(file) {
			missing = append(missing, file)
		}
	}
	return lines, missing, nil
}

// bundled reports whether a file is there in parts, by kind of key.
func bundled(file string) bool {
	for _, part := range []string{".rsa", ".ecdsa", ".dsa"} {
		if _, err := os.Stat(file + part); err == nil {
			return true
		}
	}
	return false
}

// strays reads a certificate directory: how many certificates are in it, and what HAProxy stumbles over.
func strays(dir string, dotfiles bool) (certificates int, stray []check.Stray) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, nil
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		fi, err := os.Stat(path)
		switch {
		case err == nil && fi.IsDir(), slices.Contains([]string{".issuer", ".ocsp", ".sctl", ".key"}, filepath.Ext(path)):
		case strings.HasPrefix(entry.Name(), ".") && !dotfiles:
		default:
			if why := unloadable(path); why != "" {
				stray = append(stray, check.Stray{Path: entry.Name(), Why: why})
				continue
			}
			certificates++
		}
	}
	return certificates, stray
}

// unloadable says why a file is no certificate with its key; empty also for one that this user can't read.
func unloadable(path string) string {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is a link that leads nowhere"
	case err != nil:
		return ""
	case !strings.Contains(string(text), "-----BEGIN CERTIFICATE-----"):
		return "is no certificate"
	}
	if _, err := os.Stat(strings.TrimSuffix(path, filepath.Ext(path)) + ".key"); err == nil {
		return ""
	}
	if _, err := os.Stat(path + ".key"); err != nil && !strings.Contains(string(text), "PRIVATE KEY-----") {
		return "has no private key"
	}
	return ""
}

// store looks at the directory of a file store, or at the keysets of a fleet's.
func (e *examiner) store() {
	d := &e.facts.Store
	if d.Path = e.facts.Settings.StoreDir(); d.Path == "" {
		if e.facts.Settings.Store != "" && !e.facts.Sidecar.Running {
			_, d.Err = loadKeys(e.facts.Settings)
		}
		return
	}
	fi, err := os.Stat(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.New = true
		above := filepath.Dir(d.Path)
		for above != "/" && errors.Is(syscall.Access(above, 0), syscall.ENOENT) {
			above = filepath.Dir(above)
		}
		if syscall.Access(above, mayWrite|mayExecute) != nil {
			d.Err = fmt.Errorf("%s does not exist, and %s can't make it in %s (%s): make it, mode 0700, owned by the sidecar's user", d.Path, e.facts.User, above, dataplane.Ownership(above))
		}
	case err != nil:
		d.Err = fmt.Errorf("%s: %w: let this user look into the folder above it", d.Path, errors.Unwrap(err))
	case !fi.IsDir():
		d.Err = fmt.Errorf("%s is not a directory: name another in SPOACME_STORE", d.Path)
	default:
		d.Mode = fi.Mode()
		if syscall.Access(d.Path, mayWrite|mayExecute) != nil {
			d.Err = fmt.Errorf("%s can't write to %s (%s): run this, and the sidecar, as its owner", e.facts.User, d.Path, dataplane.Ownership(d.Path))
		}
	}
}

// sidecar asks the one that runs; when none does, whether its addresses are free.
func (e *examiner) sidecar(ctx context.Context) {
	f := &e.facts
	s := &f.Sidecar
	s.Control = f.Settings.Control
	cl := newClient(s.Control)
	var v status.View
	switch err := cl.call(ctx, "/status", nil, &v); {
	case err == nil:
		s.Running, s.Version, s.User = true, v.Version, owner(s.Control)
		e.view = &v
	case !cl.absent(ctx):
		s.Err = err
		return
	default:
		e.ports(ctx)
		return
	}
	for _, c := range v.Conditions {
		if !c.OK && !(c.Name == "settings" && len(f.Problems) > 0) {
			s.Wrong = append(s.Wrong, c.Name+": "+c.Message)
		}
	}
	for _, c := range v.Certificates {
		if c.Error != "" {
			s.Wrong = append(s.Wrong, "certificate "+c.Name+": "+c.Error)
		}
	}
}

// absent reports whether nobody at all is behind the socket.
func (c *client) absent(ctx context.Context) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err == nil {
		_ = conn.Close() // it was only to see
	}
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func owner(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return ""
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return userName(int(st.Uid))
	}
	return ""
}

// ports looks whether somebody else uses the addresses of the sidecar that is to come.
func (e *examiner) ports(ctx context.Context) {
	s := e.facts.Settings
	for _, p := range []check.Port{{Variable: "SPOACME_AGENT", Address: s.Agent}, {Variable: "SPOACME_HTTP", Address: s.HTTP}, {Variable: "SPOACME_AGENT_CHECK", Address: s.AgentCheck}} {
		if p.Address == "" {
			continue
		}
		p.Err = taken(ctx, p.Address)
		e.facts.Ports = append(e.facts.Ports, p)
	}
}

// taken says why an address can't be listened on, without listening there.
func taken(ctx context.Context, address string) error {
	network, addr := settings.Network(address)
	conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, addr)
	if err == nil {
		_ = conn.Close() // it was only to see
		return errors.New("another program listens there: end it (ss -lptn shows it), or choose another address")
	}
	if network == "unix" {
		dir := filepath.Dir(addr)
		if syscall.Access(dir, mayWrite|mayExecute) != nil {
			return fmt.Errorf("%s can't make a socket in %s (%s): make the folder and give the sidecar's user write permission there", userName(os.Geteuid()), dir, dataplane.Ownership(dir))
		}
		return nil
	}
	host, _, _ := net.SplitHostPort(addr)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return fmt.Errorf("%s is no address of this machine: write 127.0.0.1, or one that it has", host)
	}
	return ln.Close()
}

const caWithin = 15 * time.Second

// authorities asks every CA that is configured for its directory (RFC 8555 section 7.1.1).
func (e *examiner) authorities(ctx context.Context) {
	s := e.facts.Settings
	directories := slices.Clone(s.CAs)
	for _, name := range slices.Sorted(maps.Keys(s.Certificates)) {
		if ca := s.Certificates[name].CA; ca != "" && !slices.Contains(directories, ca) {
			directories = append(directories, ca)
		}
	}
	client, err := caClient(s.CARoots)
	if client == nil {
		client = http.DefaultClient
	}
	for _, d := range directories {
		ca := check.CA{Directory: d, Err: err}
		if err == nil {
			askCA(ctx, client, &ca)
		}
		e.facts.CAs = append(e.facts.CAs, ca)
	}
	client.CloseIdleConnections()
}

func askCA(ctx context.Context, client *http.Client, ca *check.CA) {
	ctx, cancel := context.WithTimeout(ctx, caWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ca.Directory, nil)
	if err != nil {
		ca.Err = err
		return
	}
	req.Header.Set("User-Agent", "spoacme/"+buildVersion())
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		ca.Err = reason(err)
		return
	}
	defer resp.Body.Close()
	ca.Took = time.Since(began)
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// The header is cut to seconds.
		ca.Date = date.Add(500 * time.Millisecond).Add(time.Since(began) / 2)
	}
	var directory struct {
		NewOrder string `json:"newOrder"`
		Meta     struct {
			ExternalAccountRequired bool              `json:"externalAccountRequired"`
			Profiles                map[string]string `json:"profiles"`
		} `json:"meta"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&directory)
	if resp.StatusCode != http.StatusOK || err != nil || directory.NewOrder == "" {
		ca.Err = fmt.Errorf("%s, and no ACME directory", resp.Status)
		return
	}
	ca.NeedsEAB = directory.Meta.ExternalAccountRequired
	ca.Profiles = slices.Sorted(maps.Keys(directory.Meta.Profiles))
}
