package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/store"
)

// spoacme is the sidecar as it is shipped, beside the HAProxy of haproxy-conf.
type spoacme struct {
	haproxy *fixture.HAProxy
	sidecar *fixture.Sidecar
	control *http.Client
}

// none takes the certificates out of haproxy.cfg.
func none() map[string]string {
	return map[string]string{"SPOACME_CERTS": "", "SPOACME_CERT_shop": ""}
}

func startSpoacme(b testing.TB) *spoacme {
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: "3.2", Settings: none()})
	p := startAuthority(b, h)
	if err := h.Set("SPOACME_CA", p.Directory()); err != nil {
		b.Fatal(err)
	}
	if err := h.Restart(); err != nil {
		b.Fatal(err)
	}
	s := fixture.StartSidecar(b, fixture.SidecarOptions{HAProxy: h, Pebble: p})
	return &spoacme{haproxy: h, sidecar: s, control: overSocket(s.Control())}
}

// overSocket speaks HTTP over a unix socket.
func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 16,
	}}
}

func (s *spoacme) address() string { return s.haproxy.HTTPS.Addr() }

func (s *spoacme) ask(ctx context.Context, wishes []wish) error {
	if len(wishes) == 1 {
		_, err := s.sidecar.Run(ctx, append([]string{"issue", "--no-wait", wishes[0].name}, wishes[0].domains...)...)
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, w := range wishes {
		g.Go(func() error { return s.request(ctx, w) })
	}
	return g.Wait()
}

// request is what the command `issue` sends.
func (s *spoacme) request(ctx context.Context, w wish) error {
	body, err := json.Marshal(map[string]any{"op": store.RequestIssue, "certificate": w.name, "spec": store.Spec{Domains: w.domains}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://spoacme/requests", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := s.control.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask for %s: %s", w.name, resp.Status)
	}
	return nil
}

// lego is its command line, its server behind a rule of HAProxy, and a reload for every certificate.
type lego struct {
	haproxy *fixture.HAProxy
	pebble  *fixture.Pebble
	port    *fixture.Port
	binary  string
	dir     string
}

func startLego(b testing.TB) *lego {
	l := &lego{dir: b.TempDir()}
	var err error
	if l.binary, err = fixture.Tool("bin/lego"); err != nil {
		b.Fatal(err)
	}
	if l.port, err = fixture.ReservePort(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(l.port.Release)
	l.haproxy = fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: "3.2", Settings: none(), Edit: func(text string) string {
		text = answeredBy(text, "    use_backend acme_client if { path_beg "+challengePath+" }\n")
		return text + "\nbackend acme_client\n    server lego " + l.port.Addr() + "\n"
	}})
	l.pebble = startAuthority(b, l.haproxy)
	return l
}

// answeredBy puts other lines in the place of those that ask the sidecar for challenges.
func answeredBy(text, lines string) string {
	var kept strings.Builder
	put := false
	for line := range strings.Lines(text) {
		switch {
		case strings.Contains(line, "filter spoe"), strings.Contains(line, "acme_path"), strings.Contains(line, "acl acme_down"):
			if !put {
				kept.WriteString(lines)
			}
			put = true
		case strings.Contains(line, "redirect scheme https code 301"): // rules of http-request come before use_backend
			kept.WriteString(strings.TrimSuffix(line, "\n") + " unless { path_beg " + challengePath + " }\n")
		default:
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func (l *lego) address() string { return l.haproxy.HTTPS.Addr() }

func (l *lego) ask(ctx context.Context, wishes []wish) error {
	for _, w := range wishes {
		if err := l.one(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

func (l *lego) one(ctx context.Context, w wish) error {
	args := []string{"--server", l.pebble.Directory(), "--accept-tos", "--email", "ops@example.com", "--path", l.dir, "--key-type", "ec256",
		"--pem", "--http", "--http.port", l.port.Addr()}
	for _, d := range w.domains {
		args = append(args, "--domains", d)
	}
	cmd := exec.CommandContext(ctx, l.binary, append(args, "run")...)
	cmd.Env = append(os.Environ(), "LEGO_CA_CERTIFICATES="+l.pebble.CAFile())
	if out, err := fixture.Output(cmd); err != nil {
		return fmt.Errorf("lego: %w\n%s", err, out)
	}
	bundle, err := os.ReadFile(filepath.Join(l.dir, "certificates", w.domains[0]+".pem"))
	if err != nil {
		return err
	}
	if err := enlist(l.haproxy, map[string][]byte{w.name: bundle}); err != nil {
		return err
	}
	return l.haproxy.Reload(ctx)
}

// enlist writes PEM files and adds them to the crt-list on disk.
func enlist(h *fixture.HAProxy, bundles map[string][]byte) error {
	list, err := os.OpenFile(h.CrtList(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer list.Close()
	var lines strings.Builder
	for name, pem := range bundles {
		file := filepath.Join(filepath.Dir(h.CrtList()), name+".pem")
		if err := os.WriteFile(file, pem, 0o600); err != nil {
			return err
		}
		lines.WriteString(file + "\n")
	}
	_, err = list.WriteString(lines.String())
	return err
}

// native is the ACME client in HAProxy itself.
type native struct{ haproxy *fixture.HAProxy }

const nativeAnswer = `    http-request return status 200 content-type text/plain lf-string "%[path,field(-1,/)].%[path,field(-1,/),map(virt@acme)]" if { path_beg /.well-known/acme-challenge/ }
`

// startNative starts a HAProxy whose configuration has all certificates that will be asked for.
func startNative(b testing.TB, all []scene) *native {
	h := fixture.StartHAProxy(b, fixture.HAProxyOptions{Version: "3.2", Settings: none()})
	p := startAuthority(b, h)
	wishes := wishesOf("first", 0, 1, 1)
	for i, sc := range all {
		for round := range sc.roundsOf("haproxy-acme") {
			wishes = append(wishes, wishesOf(fmt.Sprint("s", i), round, sc.certificates, sc.domains)...)
		}
	}
	// Until it has a certificate HAProxy needs something to start with. It is made once: which names it is for is not looked at.
	start, err := fixture.SelfSigned("placeholder.invalid")
	if err != nil {
		b.Fatal(err)
	}
	var load, list strings.Builder
	for _, w := range wishes {
		file := filepath.Join(h.ConfigDir(), w.name+".pem")
		if err := os.WriteFile(file, start, 0o600); err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&load, "    load crt %s alias %s acme pebble domains %q\n", file, w.name, strings.Join(w.domains, ","))
		fmt.Fprintf(&list, "@bench/%s %s\n", w.name, strings.Join(w.domains, " "))
	}
	if err := os.WriteFile(h.CrtList(), []byte(list.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	err = h.Edit(func(text string) string {
		text = strings.Replace(text, "global\n", "global\n    expose-experimental-directives\n    httpclient.ssl.verify none\n", 1) // it can't check an address
		text = strings.Replace(text, "frontend http\n", "acme pebble\n    directory "+p.Directory()+"\n    account-key "+filepath.Join(h.ConfigDir(), "account.key")+
			"\n    contact ops@example.com\n    challenge http-01\n    keytype ECDSA\n    curves P-256\n    map virt@acme\n\ncrt-store bench\n"+load.String()+"\nfrontend http\n", 1)
		return answeredBy(text, nativeAnswer)
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Restart(); err != nil {
		b.Fatal(err)
	}
	return &native{h}
}

func (n *native) address() string { return n.haproxy.HTTPS.Addr() }

func (n *native) ask(_ context.Context, wishes []wish) error {
	for _, w := range wishes {
		if out, err := n.haproxy.Command("acme renew @bench/" + w.name); err != nil || strings.Contains(out, "Can't") || strings.Contains(out, "No ACME") {
			return fmt.Errorf("acme renew %s: %q, %w", w.name, out, err)
		}
	}
	return nil
}
