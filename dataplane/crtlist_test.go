package dataplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCrtListEdit(t *testing.T) {
	const file = "/etc/haproxy/crt/shop.pem"
	tests := []struct{ name, before, added, removed string }{
		{"empty", "", file + "\n", ""},
		{"no newline at the end", "/x.pem", "/x.pem\n" + file + "\n", "/x.pem"},
		{"others", "# mine\n/x.pem [alpn h2] a.example !b.example\r\n\n  \t\n", "# mine\n/x.pem [alpn h2] a.example !b.example\r\n\n  \t\n" + file + "\n", "# mine\n/x.pem [alpn h2] a.example !b.example\r\n\n  \t\n"},
		{"there already", file + "\n", file + "\n", ""},
		{"there with options", "/x.pem\n" + file + "[alpn h2] shop.example\n", "/x.pem\n" + file + "[alpn h2] shop.example\n", "/x.pem\n"},
		{"there by a relative name", "shop.pem\n", "shop.pem\n", "shop.pem\n"},
		{"only in a comment", "#" + file + "\n", "#" + file + "\n" + file + "\n", "#" + file + "\n"},
		{"a longer name", file + ".old\n", file + ".old\n" + file + "\n", file + ".old\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crt-list")
			write := func(text string) {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write(tt.before)
			var c crtList
			if err := c.load(path); err != nil {
				t.Fatal(err)
			}
			if !c.has(file) {
				if err := c.add(path, []string{file}); err != nil {
					t.Fatal(err)
				}
			}
			if got := must(readAll(path)); got != tt.added {
				t.Errorf("added: %q, want %q", got, tt.added)
			}
			if !c.has(file) {
				t.Error("it is not known after it was added")
			}
			write(tt.before)
			if err := c.remove(path, file); err != nil {
				t.Fatal(err)
			}
			if got := must(readAll(path)); got != tt.removed {
				t.Errorf("removed: %q, want %q", got, tt.removed)
			}
		})
	}
}

func TestCrtListErrors(t *testing.T) {
	var c crtList
	path := filepath.Join(t.TempDir(), "crt-list")
	if err := c.add(path, []string{"/x.pem"}); err == nil || !strings.Contains(err.Error(), "put it back (an empty file is a beginning)") {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.add(path, []string{"/with space/x.pem"}); err == nil || !strings.Contains(err.Error(), "can't stand in a crt-list") {
		t.Errorf("space: %v", err)
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := c.add(link, []string{"/x.pem"}); err != nil {
		t.Fatal(err)
	}
	if fi := must(os.Lstat(link)); fi.Mode().IsRegular() {
		t.Error("a link was replaced by a file")
	}
	if got := must(readAll(path)); got != "/x.pem\n" {
		t.Errorf("behind the link: %q", got)
	}
}
