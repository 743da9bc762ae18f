package integration

import (
	"context"
	"crypto/sha1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spoacme/spoacme/integration/fixture"
	"github.com/spoacme/spoacme/status"
)

// settled tells what is not as it should be: what is stored, served and on disk must be the same.
func (w *world) settled() error {
	v, err := w.view()
	if err != nil {
		return err
	}
	if !v.Ready() {
		return fmt.Errorf("not ready: %+v", v.Conditions)
	}
	for _, c := range v.Certificates {
		if err := w.settledCertificate(c); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	certs, err := w.haproxy.Command("show ssl cert")
	if err != nil {
		return err
	}
	if strings.Contains(certs, "# transaction") {
		return fmt.Errorf("a transaction is open:\n%s", certs)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(w.haproxy.CrtList()), ".spoacme", "*")); len(left) > 1 {
		return fmt.Errorf("temporary files: %v", left)
	}
	_, err = w.haproxy.Check(context.Background())
	return err
}

func (w *world) settledCertificate(c status.CertificateView) error {
	want := w.states[c.Name]
	if want == "" {
		want = status.OK
	}
	if c.State != want {
		return fmt.Errorf("it is %s (%s), not %s", c.State, c.Error, want)
	}
	if c.Stored == nil || want == status.Expired && c.Served.Fingerprint == "" {
		return nil // there is none, or none that may be put in
	}
	if c.Served == nil || c.Served.Fingerprint != c.Stored.Fingerprint {
		return fmt.Errorf("%+v is served, %+v stored", c.Served, c.Stored)
	}
	s, err := fixture.Fetch(context.Background(), w.haproxy.HTTPS.Addr(), c.Domains[0])
	if err != nil {
		return err
	}
	if s.Serial != c.Stored.Serial {
		return fmt.Errorf("clients get %s, stored is %s", s.Serial, c.Stored.Serial)
	}
	return w.settledFile(c)
}

// settledFile looks at a certificate's file, and at its line in the crt-list.
func (w *world) settledFile(c status.CertificateView) error {
	path := w.pem(c.Name)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&^0o640 != 0 {
		return fmt.Errorf("%s has mode %o", path, mode)
	}
	rest, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var block *pem.Block
	for block == nil || block.Type != "CERTIFICATE" {
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("no certificate in " + path)
		}
	}
	if print := fmt.Sprintf("%X", sha1.Sum(block.Bytes)); print != c.Stored.Fingerprint {
		return fmt.Errorf("%s is on disk, %s stored", print, c.Stored.Fingerprint)
	}
	list, err := os.ReadFile(w.haproxy.CrtList())
	if n := strings.Count(string(list), path+"\n"); err == nil && len(list) > 0 && n != 1 {
		return fmt.Errorf("%d lines in the crt-list", n)
	}
	return nil
}
