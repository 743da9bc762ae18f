package integration

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// leaks looks for private keys in everything that is printed.
type leaks struct {
	world *world

	mu      sync.Mutex
	printed map[string]string // what was printed, by where
}

func newLeaks(w *world) *leaks { return &leaks{world: w, printed: map[string]string{}} }

// add keeps something that was printed.
func (l *leaks) add(where, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.printed[where] += text
}

// found returns the leaks.
func (l *leaks) found() []error {
	w := l.world
	l.add("the sidecar's log", w.sidecar.Log())
	l.add("HAProxy's log", w.haproxy.Log())
	for _, page := range []string{"/metrics", "/status", "/status?format=text", "/readyz"} {
		text, err := w.sidecar.Get(page)
		if err != nil {
			return []error{fmt.Errorf("look for leaks: %w", err)}
		}
		l.add(page, text)
	}
	for _, command := range []string{"show env", "show stat", "show servers state"} {
		text, err := w.haproxy.Command(command)
		if err != nil {
			return []error{fmt.Errorf("look for leaks: %w", err)}
		}
		l.add(command, text)
	}
	secrets := l.secrets()
	if len(secrets) < 2 {
		return []error{fmt.Errorf("look for leaks: %d keys are stored, an account's and a certificate's at least should be", len(secrets))}
	}
	var errs []error
	for where, text := range l.printed {
		if text == "" {
			errs = append(errs, fmt.Errorf("look for leaks: nothing in %s", where))
		}
		text = squeeze(text)
		for _, secret := range append(secrets, squeeze("PRIVATE KEY")) {
			if strings.Contains(text, secret) {
				errs = append(errs, fmt.Errorf("a private key is in %s", where))
			}
		}
	}
	return errs
}

// secrets returns a piece of the base64 of every key in the sidecar's folders and HAProxy's.
func (l *leaks) secrets() []string {
	found := make(map[string]bool)
	for _, dir := range []string{l.world.sidecar.State(), filepath.Dir(l.world.haproxy.ConfigDir())} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			rest := []byte(strings.NewReplacer(`\n`, "\n", "-----BEGIN", "\n-----BEGIN").Replace(string(b)))
			for {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil {
					return nil
				}
				if strings.HasSuffix(block.Type, "PRIVATE KEY") {
					text := base64.StdEncoding.EncodeToString(block.Bytes)
					found[text[len(text)/3:len(text)/3+30]] = true
				}
			}
		})
	}
	all := make([]string, 0, len(found))
	for s := range found {
		all = append(all, s)
	}
	return all
}

// squeeze makes a key look the same however it was broken into lines.
func squeeze(s string) string {
	return strings.NewReplacer("\\n", "", "\n", "", "\r", "", " ", "", "\t", "").Replace(s)
}
