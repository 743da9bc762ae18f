// Package spoacme holds no code: its test keeps the imports going one way.
package spoacme

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/spoacme/spoacme/"

// owners says which one package may import a library.
var owners = map[string]string{
	"github.com/negasus/haproxy-spoe-go":   "spoa",
	"github.com/haproxytech/client-native": "dataplane",
	"github.com/go-acme/lego":              "issuer",
	"github.com/hashicorp/consul/api":      "store/consul",
	"github.com/tink-crypto/tink-go":       "store/seal",
	"github.com/spf13/cobra":               "cmd/spoacme",
	"github.com/agext/levenshtein":         "settings",
}

// allowed says which of our packages a package may import. cmd/spoacme and integration may import all.
var allowed = map[string][]string{
	"store":           {},
	"store/seal":      {"store"},
	"store/file":      {"store"},
	"store/consul":    {"store", "store/seal"},
	"store/storetest": {"store"},
	"settings":        {"store"},
	"spoa":            {},
	"dataplane":       {"store"},
	"issuer":          {"store"},
	"status":          {"store"},
	"check":           {"settings", "store"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		pkg := strings.TrimPrefix(f[0], module)
		if strings.HasPrefix(pkg, "integration") {
			continue
		}
		seen++
		for _, imported := range f[1:] {
			checkImport(t, pkg, imported)
		}
	}
	if seen < len(allowed)-1 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

func checkImport(t *testing.T, pkg, imported string) {
	t.Helper()
	if ours, ok := strings.CutPrefix(imported, module); ok {
		may, known := allowed[pkg]
		if pkg == "cmd/spoacme" {
			return
		}
		if !known {
			t.Errorf("%s is not in the list of packages: say what it may import", pkg)
			return
		}
		for _, m := range may {
			if m == ours {
				return
			}
		}
		t.Errorf("%s imports %s", pkg, ours)
		return
	}
	for library, owner := range owners {
		if strings.HasPrefix(imported, library) && owner != "" && owner != pkg {
			t.Errorf("%s imports %s, which is %s's", pkg, imported, owner)
		}
	}
	if pkg == "store" && strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") {
		t.Errorf("store imports %s: it takes the standard library only", imported)
	}
}
