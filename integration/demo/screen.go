package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen prints for a person: aligned facts, and a line for everything that takes longer than a moment. Colours and lines
// that are written over are for terminals only.
type screen struct {
	out      io.Writer
	terminal bool
	colours  bool
}

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &screen{out: out, terminal: terminal, colours: terminal && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "31"
)

func (s *screen) colour(code, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// title begins a part.
func (s *screen) title(text string) { fmt.Fprintf(s.out, "\n%s\n", s.colour(bold, text)) }

// text prints indented lines.
func (s *screen) text(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(s.out, strings.TrimRight("  "+line, " "))
	}
}

// labelWidth fits the longest label.
const labelWidth = 15

// fact prints what was seen.
func (s *screen) fact(label, format string, args ...any) {
	fmt.Fprintf(s.out, "  %-*s %s\n", labelWidth, label, fmt.Sprintf(format, args...))
}

// proof prints what was seen beside what was promised, and returns an error when they differ.
func (s *screen) proof(kept bool, label, format string, args ...any) error {
	mark := s.colour(green, "✓")
	if !kept {
		mark = s.colour(red, "✗")
	}
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(s.out, "  %-*s %s %s\n", labelWidth, label, text, mark)
	if !kept {
		return fmt.Errorf("not as promised: %s: %s", label, text)
	}
	return nil
}

// patience is how long a step may take without a word where lines can't be written over.
const patience = time.Second

// step does something that may take a while, and then prints its result and how long it took. While it lasts, it says
// so; progress, if called, says what exactly is going on.
func (s *screen) step(ctx context.Context, label string, do func(progress func(string)) (string, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	began := time.Now()
	w := &waiting{screen: s, label: label}
	if s.terminal {
		w.say("…")
	}
	late := time.AfterFunc(patience, func() {
		if !s.terminal {
			w.say("…")
		}
	})
	result, err := do(w.say)
	late.Stop()
	w.end()
	if err != nil {
		return fmt.Errorf("%s: %w", strings.ToLower(label), err)
	}
	if took := time.Since(began).Round(100 * time.Millisecond); took > 0 {
		result += s.colour(dim, fmt.Sprintf("  %.1f s", took.Seconds()))
	}
	s.fact(label, "%s", result)
	return ctx.Err()
}

// waiting is the line that stands while a step lasts.
type waiting struct {
	screen *screen
	label  string

	mu    sync.Mutex
	ended bool
}

func (w *waiting) say(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if w.screen.terminal {
		fmt.Fprintf(w.screen.out, "\r\x1b[K  %-*s %s", labelWidth, w.label, w.screen.colour(dim, what))
	} else {
		fmt.Fprintf(w.screen.out, "  %-*s %s\n", labelWidth, w.label, what)
	}
}

func (w *waiting) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.screen.terminal {
		fmt.Fprint(w.screen.out, "\r\x1b[K")
	}
}
