package status

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// material is what could be of a key, should an error ever hold it; and URLs, which may be as long, and which the operator
// needs: a CA says in one how to lift a ban.
var material = regexp.MustCompile(`https?://[^\s"'<>]+|-----BEGIN.*|[A-Za-z0-9+/_=-]{64,}`)

func hide(match string) string {
	if strings.HasPrefix(match, "http") {
		return match
	}
	return "[hidden]"
}

// clean makes one line of at most most bytes that a terminal, a log and HAProxy can show.
func clean(s string, most int) string {
	if s == "" {
		return s
	}
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		if !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, s)
	s = material.ReplaceAllStringFunc(strings.Join(strings.Fields(s), " "), hide)
	if len(s) > most {
		const dots = "…"
		s = strings.ToValidUTF8(s[:most-len(dots)], "") + dots
	}
	return s
}

// span is a duration for people: the largest unit that gives at least two of it.
func span(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// Table writes the view for people: a head line, a row per certificate, then what is wrong.
func Table(w io.Writer, v View) error {
	var b strings.Builder
	b.WriteString(head(v) + "\n\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CERTIFICATE\tSTATE\tEXPIRES\tLEFT\tNEXT\tSERVED\tDOMAINS")
	for _, c := range v.Certificates {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.State, expires(c, v.Time), left(c), next(c, v.Time), served(c, v), domains(c.Domains))
	}
	if len(v.Certificates) == 0 && v.Loading {
		b.WriteString("the store was not read yet\n")
	} else if len(v.Certificates) == 0 {
		b.WriteString("no certificates: name them in SPOACME_CERTS, or run `spoacme issue NAME DOMAIN`\n")
	} else if err := t.Flush(); err != nil {
		return err
	}
	if err := fleet(&b, v); err != nil {
		return err
	}
	troubles(&b, v)
	_, err := io.WriteString(w, b.String())
	return err
}

func head(v View) string {
	line := "spoacme"
	if v.Version != "" {
		line += " " + v.Version
	}
	line += " on " + v.Node
	if v.Role == roleIssuer {
		line += ", role issuer: no HAProxy"
	} else if v.HAProxy.Reachable {
		line += fmt.Sprintf(", HAProxy %s, pid %d", v.HAProxy.Version, v.HAProxy.PID)
	} else {
		line += ", HAProxy not reachable"
	}
	if v.Ready() {
		return line + ": ready"
	}
	return line + ": NOT READY"
}

// fleet writes a row per node.
func fleet(b *strings.Builder, v View) error {
	if len(v.Fleet) == 0 {
		return nil
	}
	b.WriteString("\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tSTATE\tDIFFERS")
	for _, n := range v.Fleet {
		role := n.Role
		if role == "" {
			role = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", n.Name, role, n.state(), len(n.Differs))
	}
	return t.Flush()
}

// state says in a few words how a node is.
func (n Node) state() string {
	var words []string
	switch {
	case !n.Live:
		return "gone: `spoacme forget " + n.Name + "` if for good"
	case n.Leads:
		words = append(words, "leads")
	default:
		words = append(words, "live")
	}
	if n.Suspect {
		words = append(words, "missed an order's tokens")
	}
	if n.Behind {
		words = append(words, "catching up")
	}
	return strings.Join(words, ", ")
}

func troubles(b *strings.Builder, v View) {
	first := true
	say := func(name, text string) {
		if first {
			b.WriteString("\n")
			first = false
		}
		fmt.Fprintf(b, "%s: %s\n", name, text)
	}
	for _, c := range v.Certificates {
		if c.Error != "" {
			say(c.Name, c.Error)
		}
		if c.Note != "" {
			say(c.Name, c.Note)
		}
	}
	for _, n := range v.Fleet {
		if n.Name == v.Node {
			continue // said above
		}
		for _, d := range n.Differs {
			say(d.Certificate+" on "+n.Name, d.Cause+" (for "+span(v.Time.Sub(d.Since))+")")
		}
	}
	for _, c := range v.Conditions {
		if !c.OK {
			say("not ready: "+c.Name, c.Message)
		}
	}
}

func expires(c CertificateView, now time.Time) string {
	switch {
	case c.Stored == nil:
		return "-"
	case c.State == Expired || !now.Before(c.Stored.NotAfter):
		return span(now.Sub(c.Stored.NotAfter)) + " ago"
	}
	return "in " + span(c.Stored.NotAfter.Sub(now))
}

func left(c CertificateView) string {
	if c.Stored == nil {
		return "-"
	}
	return fmt.Sprintf("%d%%", c.Percent)
}

// next says what happens next to a certificate, and when.
func next(c CertificateView, now time.Time) string {
	in := func(what string, t time.Time) string {
		if !t.After(now) {
			return what + " now"
		}
		return what + " in " + span(t.Sub(now))
	}
	switch {
	case c.State == Unwanted, c.State == Foreign:
		return "-"
	case c.Failures > 0 && c.Error != "" && (c.State == Failing || c.State == Missing || c.State == Expired):
		return in("retry", c.NextAttempt)
	case c.State == Missing:
		return "issue now"
	case c.State == Renewing || c.State == Expired:
		return "renew now"
	case c.RenewAt.IsZero():
		return "-"
	}
	return in("renew", c.RenewAt)
}

func served(c CertificateView, v View) string {
	if !v.HAProxy.Reachable {
		return "?"
	}
	return c.Nodes.String()
}

func domains(d []string) string {
	switch len(d) {
	case 0:
		return "-"
	case 1, 2:
		return strings.Join(d, " ")
	}
	return fmt.Sprintf("%s +%d", d[0], len(d)-1)
}
