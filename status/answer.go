package status

import (
	"fmt"
	"strings"
	"time"
)

// MaxRows is how many statistics rows there are at most. With more certificates only those that
// need attention have a row, and the row OthersRow counts the rest.
const MaxRows = 500

// OthersRow is the row that counts; the settings refuse a certificate of this name.
const OthersRow = "_others"

// maxAnswer is how long the text of a row may be.
const maxAnswer = 100

// answer is the state of one row, as an agent check reports it (HAProxy's manual, "agent-check").
type answer struct {
	words  string // administrative and operational state
	weight int    // per cent; 0 when the words say enough
	text   string
}

func (a answer) String() string {
	s := a.words
	if a.weight > 0 {
		s += fmt.Sprintf(" %d%%", a.weight)
	}
	return s + " #" + plain(a.text) + "\n"
}

// The states of rows. HAProxy drops the text of an answer that has no operational state, and a
// server that is down stays so until it hears "up"; hence "up drain".
const (
	wordsUp    = "ready up"
	wordsDrain = "up drain"
	wordsDown  = "down"
)

// rowOf says how the row of a certificate looks.
func rowOf(c CertificateView, now time.Time) answer {
	switch c.State {
	case Missing:
		return answer{wordsDown, 0, because("no certificate yet", c.Error)}
	case Expired:
		return answer{wordsDown, 0, because("expired "+span(now.Sub(c.Stored.NotAfter))+" ago", c.Error)}
	case Drift:
		return answer{wordsDown, 0, because("not the one stored", c.Error)}
	case Failing:
		return answer{wordsDrain, c.Percent, because("renewal failing", fmt.Sprintf("expires in %s, %s", span(c.Stored.NotAfter.Sub(now)), c.Error))}
	case Unwanted:
		return answer{wordsDrain, c.Percent, "no longer wanted, expires " + expires(c, now)}
	case Foreign:
		return answer{wordsUp, c.Percent, "of another tool, " + wellness(c, now)}
	case Renewing:
		return answer{wordsUp, c.Percent, "renewing, " + wellness(c, now)}
	}
	return answer{wordsUp, c.Percent, wellness(c, now)}
}

func wellness(c CertificateView, now time.Time) string {
	return fmt.Sprintf("expires in %s, serial %s, %s nodes", span(c.Stored.NotAfter.Sub(now)), c.Stored.Serial, c.Nodes)
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

// attention reports whether the certificate has a row even when there are many.
func (c CertificateView) attention() bool {
	return c.State == Missing || c.State == Expired || c.State == Drift || c.State == Failing
}

// layout splits the certificates into those that have a row and those that the last row counts.
// Unwanted ones have none: their end is no alarm.
func layout(v View) (rows, rest []CertificateView) {
	var calm []CertificateView
	for _, c := range v.Certificates {
		switch {
		case c.State == Unwanted:
		case c.attention():
			rows = append(rows, c)
		default:
			calm = append(calm, c)
		}
	}
	if len(rows)+len(calm) <= MaxRows {
		return append(rows, calm...), nil
	}
	if most := MaxRows - 1; len(rows) > most {
		return rows[:most], append(rows[most:], calm...)
	}
	return rows, calm
}

// restOf says how the row looks that counts the rest.
func restOf(rest []CertificateView, now time.Time) answer {
	a := answer{words: wordsUp, weight: 100}
	bad := 0
	var first time.Time
	for _, c := range rest {
		if c.attention() {
			bad++
			if a.words != wordsDown {
				a.words, a.weight = rowOf(c, now).words, 0
			}
			continue
		}
		if a.words == wordsUp {
			a.weight = min(a.weight, c.Percent)
		}
		if first.IsZero() || c.Stored.NotAfter.Before(first) {
			first = c.Stored.NotAfter
		}
	}
	a.text = count(len(rest)) + " other certificates"
	switch {
	case bad > 0:
		a.text += ", " + count(bad) + " of them need attention: run `spoacme status`"
	case !first.IsZero():
		a.text += ", the first expires in " + span(first.Sub(now))
	}
	return a
}

// summary is what a server without a certificate reports, such as that of the SPOE agent. It never
// takes that server down or out of maintenance.
func summary(v View) answer {
	n := make(map[State]int)
	for _, c := range v.Certificates {
		n[c.State]++
	}
	parts := []string{count(len(v.Certificates)) + " certificates"}
	if len(v.Certificates) == 1 {
		parts[0] = "1 certificate"
	}
	for _, s := range States() {
		if n[s] > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", count(n[s]), s))
		}
	}
	text := strings.Join(parts, ", ")
	if c, ok := worst(v); ok {
		text += "; " + because(c.Name, c.Error)
	}
	return answer{"up", 0, text}
}

// worst finds the certificate that needs attention most.
func worst(v View) (CertificateView, bool) {
	for _, s := range States() {
		for _, c := range v.Certificates {
			if c.State == s && c.attention() {
				return c, true
			}
		}
	}
	return CertificateView{}, false
}

// count writes 9500 as 9,500.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plain makes text that every version of HAProxy can show anywhere: one line of ASCII, nothing of HTML.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '…':
			return '.'
		case r < ' ' || r > '~', strings.ContainsRune(`<>&"`, r):
			return '\''
		}
		return r
	}, clean(s, 1000))
	if len(s) > maxAnswer {
		s = s[:maxAnswer-3] + "..."
	}
	return s
}
