package settings

import (
	"os"
	"strings"
	"testing"
)

// TestManual: the README names every setting with its default.
func TestManual(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range Describe() {
		row := "| `" + v.Name + "`"
		i := strings.Index(string(readme), row)
		if i < 0 {
			t.Errorf("the README does not explain %s", v.Name)
			continue
		}
		line, _, _ := strings.Cut(string(readme)[i:], "\n")
		if v.Default != "" && !strings.Contains(line, "`"+v.Default+"`") || strings.Contains(line, "` * |") != v.Own {
			t.Errorf("the README says of %s: %s", v.Name, line)
		}
	}
}
