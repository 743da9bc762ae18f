package check

import (
	"slices"
	"strings"
)

// Config is what check understands of HAProxy's configuration files: sections, lines, words. It is read for this command
// only, it is tolerant, and nothing else in spoacme depends on it.
type Config struct {
	Files    []string
	Sections []Section
	// Env is what its setenv, presetenv and unsetenv lines make of each variable.
	Env map[string]*Variable
	// SPOE holds the files that filter lines name, by path as it stands there.
	SPOE map[string]*Config
	// Unread says why one of those can't be read.
	Unread map[string]error

	lookup func(name string) (string, bool)
	depth  int // of .if
}

// Section is one section of a file. Its words are those of its first line: "frontend", "http".
type Section struct {
	Line
	Scope string // "[acme]" above it, in a SPOE file
	Lines []Line
}

// Line is one line with its words, quotes and variables resolved.
type Line struct {
	File   string
	Number int
	Words  []string
	Maybe  bool // between .if and .endif, which are not evaluated
}

// Variable is an environment variable as the files set it.
type Variable struct {
	Values []string // possible ones; several when .if lines decide. Empty: it is unset
	Pre    bool     // by presetenv, which never changes what is there
	Lost   bool     // words behind the value, which HAProxy drops or refuses
	Line   Line
}

// maxWord keeps variables that hold themselves twice from growing without end.
const maxWord = 64 << 10

func sectionWords() []string {
	return []string{"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "cache", "mailers",
		"program", "http-errors", "ring", "log-forward", "log-profile", "fcgi-app", "crt-store", "acme", "traces",
		"spoe-agent", "spoe-message", "spoe-group"}
}

// NewConfig begins to read. lookup resolves variables that the files themselves do not set.
func NewConfig(lookup func(name string) (string, bool)) *Config {
	return &Config{Env: map[string]*Variable{}, SPOE: map[string]*Config{}, Unread: map[string]error{}, lookup: lookup}
}

// Add reads the text of one more file.
func (c *Config) Add(file, text string) {
	c.Files = append(c.Files, file)
	c.depth = 0
	scope, number := "", 0
	for raw := range strings.Lines(text) {
		number++
		words := c.words(raw)
		if len(words) == 0 {
			continue
		}
		switch first := words[0]; {
		case first == ".if":
			c.depth++
		case first == ".endif":
			c.depth--
		case strings.HasPrefix(first, "."):
		case strings.HasPrefix(first, "[") && strings.HasSuffix(first, "]"):
			scope = strings.Trim(first, "[]")
		default:
			c.line(Line{file, number, words, c.depth > 0}, scope)
		}
	}
}

func (c *Config) line(l Line, scope string) {
	if slices.Contains(sectionWords(), l.Words[0]) {
		c.Sections = append(c.Sections, Section{Line: l, Scope: scope})
		return
	}
	if len(c.Sections) == 0 {
		return
	}
	s := &c.Sections[len(c.Sections)-1]
	s.Lines = append(s.Lines, l)
	if s.Words[0] == "global" && len(l.Words) > 1 {
		c.setenv(l)
	}
}

// setenv follows a line that changes the environment.
func (c *Config) setenv(l Line) {
	name := l.Words[1]
	switch l.Words[0] {
	case "setenv", "presetenv":
		if len(l.Words) < 3 {
			return
		}
		v := &Variable{Values: []string{l.Words[2]}, Pre: l.Words[0] == "presetenv", Lost: len(l.Words) > 3, Line: l}
		if old := c.Env[name]; old != nil && l.Maybe {
			v.Values = append(v.Values, old.Values...)
		}
		c.Env[name] = v
	case "unsetenv":
		for _, name := range l.Words[1:] {
			if !l.Maybe {
				c.Env[name] = &Variable{Line: l}
			}
		}
	}
}

// variable is how the files see one.
func (c *Config) variable(name string) string {
	if v := c.Env[name]; v != nil {
		if len(v.Values) > 0 {
			return v.Values[0]
		}
		return ""
	}
	if c.lookup != nil {
		v, _ := c.lookup(name)
		return v
	}
	return ""
}

// words splits a line as HAProxy does (management of quotes: section 2.2 of its configuration manual).
func (c *Config) words(line string) []string {
	var out []string
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(line); i++ {
		b := line[i]
		switch {
		case b == '\\' && quote != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inWord = true
		case quote != 0 && b == quote:
			quote = 0
		case quote == 0 && (b == '"' || b == '\''):
			quote, inWord = b, true
		case quote == '"' && b == '$':
			value, used := c.expand(line[i+1:])
			if word.Len() < maxWord {
				word.WriteString(value)
			}
			i += used
		case quote == 0 && strings.IndexByte(" \t\r\n", b) >= 0:
			if inWord {
				out = append(out, word.String())
				word.Reset()
				inWord = false
			}
		case quote == 0 && b == '#':
			i = len(line)
		default:
			word.WriteByte(b)
			inWord = true
		}
	}
	if inWord {
		out = append(out, strings.TrimRight(word.String(), "\r\n"))
	}
	return out
}

// expand resolves the variable whose name follows a $, and says how many bytes that took.
func (c *Config) expand(rest string) (value string, used int) {
	if braced, ok := strings.CutPrefix(rest, "{"); ok {
		name, _, closed := strings.Cut(braced, "}")
		if !closed {
			return "$", 0
		}
		used = len(name) + 2
		name, def, _ := strings.Cut(strings.TrimSuffix(name, "[*]"), "-")
		if value = c.variable(name); value == "" {
			value = def
		}
		return value, used
	}
	n := 0
	for n < len(rest) && (rest[n] == '_' || rest[n] >= '0' && rest[n] <= '9' || rest[n] >= 'A' && rest[n] <= 'Z' || rest[n] >= 'a' && rest[n] <= 'z') {
		n++
	}
	if n == 0 {
		return "$", 0
	}
	return c.variable(rest[:n]), n
}

// Environment returns the variables that the files set; of several possible values the last.
func (c *Config) Environment() map[string]string {
	env := map[string]string{}
	for name, v := range c.Env {
		if len(v.Values) > 0 {
			env[name] = v.Values[0]
		}
	}
	return env
}

// SPOEFiles returns the files that filter lines name.
func (c *Config) SPOEFiles() []string {
	var files []string
	for _, s := range c.Sections {
		for _, l := range s.Lines {
			if f := parseFilter(l); f.file != "" && !slices.Contains(files, f.file) {
				files = append(files, f.file)
			}
		}
	}
	return files
}

// name is the second word of a section.
func (s Section) name() string {
	if len(s.Words) > 1 {
		return s.Words[1]
	}
	return ""
}

// values returns what follows each line of the section that begins with the words.
func (s Section) values(words ...string) (found [][]string) {
	for _, l := range s.Lines {
		if len(l.Words) >= len(words) && slices.Equal(l.Words[:len(words)], words) {
			found = append(found, l.Words[len(words):])
		}
	}
	return found
}

// value is the first word that follows the words, in any section of the kind; the last one wins.
func (c *Config) value(kind string, words ...string) string {
	found := ""
	for _, s := range c.Sections {
		if s.Words[0] != kind {
			continue
		}
		for _, v := range s.values(words...) {
			if len(v) > 0 {
				found = v[0]
			}
		}
	}
	return found
}

// backend finds a backend by name.
func (c *Config) backend(name string) *Section {
	for i, s := range c.Sections {
		if (s.Words[0] == "backend" || s.Words[0] == "listen") && s.name() == name {
			return &c.Sections[i]
		}
	}
	return nil
}

// defaults finds the section that a proxy goes by.
func (c *Config) defaults(at int) *Section {
	s, from := c.Sections[at], ""
	if i := slices.Index(s.Words, "from"); i > 0 && i+1 < len(s.Words) {
		from = s.Words[i+1]
	}
	for i := at - 1; i >= 0; i-- {
		if d := &c.Sections[i]; d.Words[0] == "defaults" && (from == "" || d.name() == from) {
			return d
		}
	}
	return nil
}

// mode is that of a proxy: its own, or that of its defaults.
func (c *Config) mode(at int) string {
	for _, s := range []*Section{&c.Sections[at], c.defaults(at)} {
		if s == nil {
			continue
		}
		if v := s.values("mode"); len(v) > 0 && len(v[0]) > 0 {
			return v[0][0]
		}
	}
	return "tcp"
}
