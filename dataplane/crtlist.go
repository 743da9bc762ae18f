package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// crtList is what the crt-list file on disk names, as last read.
type crtList struct {
	path  string
	stamp stamp
	files map[string]bool
}

// load reads the file when it changed.
func (c *crtList) load(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return listError(path, err)
	}
	if c.path == path && c.stamp.same(stampOf(fi)) {
		return nil
	}
	text, fi, err := readFile(path, maxListFile)
	if err != nil {
		return listError(path, err)
	}
	c.path, c.stamp, c.files = path, stampOf(fi), map[string]bool{}
	for l := range bytes.Lines(text) {
		if f := lineFile(l); f != "" {
			c.files[f] = true
		}
	}
	return nil
}

// has reports whether a line names the file. A relative name counts when its last part is the file's: it
// depends on HAProxy's crt-base.
func (c *crtList) has(file string) bool {
	return c.files[file] || c.files[filepath.Base(file)]
}

// lineFile returns the file that a line of a crt-list names.
func lineFile(l []byte) string {
	fields := bytes.Fields(l)
	if len(fields) == 0 || fields[0][0] == '#' {
		return ""
	}
	f, _, _ := bytes.Cut(fields[0], []byte("["))
	return string(f)
}

// add appends lines for files. Lines of others stay byte for byte.
func (c *crtList) add(path string, files []string) error {
	if len(files) == 0 {
		return nil
	}
	return c.edit(path, func(text []byte) ([]byte, error) {
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
		for _, f := range files {
			if strings.ContainsAny(f, " \t[]#\r\n\"'\\") {
				return nil, fmt.Errorf("write %s: %q can't stand in a crt-list; give certificates a directory without such characters", path, f)
			}
			text = append(append(text, f...), '\n')
		}
		return text, nil
	})
}

// remove deletes the lines of file.
func (c *crtList) remove(path, file string) error {
	if err := c.load(path); err != nil || !c.files[file] {
		return err
	}
	return c.edit(path, func(text []byte) ([]byte, error) {
		var out []byte
		for l := range bytes.Lines(text) {
			if lineFile(l) != file {
				out = append(out, l...)
			}
		}
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
		return out, nil
	})
}

// edit rewrites the file, once more when somebody else changed it in between.
func (c *crtList) edit(path string, change func([]byte) ([]byte, error)) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return listError(path, err)
	}
	for range 5 {
		text, fi, err := readFile(target, maxListFile)
		if err != nil {
			return listError(path, err)
		}
		before := stampOf(fi)
		out, err := change(text)
		if err != nil {
			return err
		}
		if fi, err = os.Stat(target); err != nil || !before.same(stampOf(fi)) {
			continue
		}
		if err := writeFile(target, out, 0o644); err != nil {
			return err
		}
		return c.load(path)
	}
	return fmt.Errorf("write %s: somebody else keeps changing it", path)
}

func listError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read %s: the crt-list that HAProxy has loaded is gone; HAProxy will not restart without it: put it back (an empty file is a beginning)", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("read %s (%s): permission denied; make it readable for this user", path, Ownership(path))
	}
	return err
}
