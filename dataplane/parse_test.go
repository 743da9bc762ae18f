package dataplane

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func counter(t *testing.T, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestMetricsAreValid(t *testing.T) {
	h := openAt(t, "/nowhere")
	r := prometheus.NewPedanticRegistry()
	for _, c := range h.Metrics() {
		if err := r.Register(c); err != nil {
			t.Error(err)
		}
	}
	h.metrics.swapped(nil, 1)
	h.metrics.swapped(ErrBusy, 1)
	h.metrics.swapped(errRetry, 1)
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}

func TestParseEntry(t *testing.T) {
	tests := []struct {
		line string
		want Entry
	}{
		{"/a.pem:1", Entry{File: "/a.pem", Line: 1}},
		{"/a.pem", Entry{File: "/a.pem"}},
		{"/a:b.pem:12 [alpn h2 verify none] a.example !b.example", Entry{File: "/a:b.pem", Line: 12, Options: "alpn h2 verify none", Filters: []string{"a.example", "!b.example"}}},
		{"/a:b.pem x", Entry{File: "/a:b.pem", Filters: []string{"x"}}},
	}
	for _, tt := range tests {
		got, ok := parseEntry(tt.line)
		if len(got.Filters) == 0 {
			got.Filters = nil
		}
		if !ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.line, got, tt.want)
		}
	}
}

// TestErrorsHideKeys: whatever HAProxy or client-native put into an error, no payload comes out.
func TestErrorsHideKeys(t *testing.T) {
	key := strings.Repeat("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7", 2)
	for _, err := range []error{
		scrub(errors.New("[3] no [set ssl cert /x <<\n-----BEGIN PRIVATE KEY-----\n" + key)),
		refused([]byte("\n[3]: unknown word " + key + "\n\n")),
		refused([]byte("\n[3]: -----BEGIN PRIVATE KEY-----\n" + key + "\n\n")),
		&refusal{line(key)},
	} {
		if s := err.Error(); strings.Contains(s, "MIIE") || strings.Contains(s, "PRIVATE") {
			t.Errorf("a key in %q", s)
		}
	}
}

func TestRefused(t *testing.T) {
	for answer, want := range map[string]string{
		"\n[5]: Transaction created for certificate /x!\n\n": "",
		"\n[6]: Server deleted.\n\n":                         "",
		"\n[4]: a warning\n\n":                               "",
		"\nCommitting /x\nwarning\nSuccess!\n\n":             "",
		"\n[3]: No ongoing transaction!\n\n":                 "HAProxy: No ongoing transaction!",
		"\n[3]: Can't load\nCan't update\n\n":                "HAProxy: Can't load; Can't update",
	} {
		got := ""
		if err := refused([]byte(answer)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", answer, got, want)
		}
	}
}

// FuzzAnswers: no answer of HAProxy makes a parser fail.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		"\nName: HAProxy\nVersion: 2.6.12\nPid: 7\nUptime_sec: 5\n\n", "# transaction\n*/x.pem\n# filename\n/x.pem\n\n",
		"Filename: /x\nStatus: Used\nSerial: 0A\nnotAfter: Dec 22 19:59:28 2026 GMT\n", "/x.pem:1 [alpn h2] a !b\n",
		"# pxname,svname,status,uweight\ncertificates,shop,UP,61\n", "[3]: no\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = parseInfo([]byte(s))
		_, _ = parseCerts([]byte(s))
		_ = parseServed(s)
		_, _ = oneServed("/x", s)
		_, _ = parseEntry(s)
		_, _ = parseRows(s, "certificates")
		_ = refused([]byte(s))
		if l := line(s); strings.ContainsAny(l, "\n\r") {
			t.Errorf("line breaks in %q", l)
		}
		_ = lineFile([]byte(s))
	})
}
