package store

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	namePattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
	tokenPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)
)

// ValidName reports what is wrong with the name of a record or certificate. A certificate's name
// becomes a file name, a key, the name of a statistics row and a part of a variable's name.
func ValidName(name string) error {
	if !namePattern.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("name %q: use 1 to 64 letters, digits, '.', '_' or '-', not '..', and begin with a letter, digit or '_'", name)
	}
	return nil
}

// ValidToken reports whether t may be a token of a challenge (RFC 8555 section 8.3).
func ValidToken(t string) bool { return tokenPattern.MatchString(t) }
