package status

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spoacme/spoacme/store"
)

const table = `spoacme 1.0 on lb1, HAProxy 3.0.11, pid 42: NOT READY

CERTIFICATE  STATE    EXPIRES  LEFT  NEXT          SERVED  DOMAINS
new          missing  -        -     retry in 5m   0/1     new.example.com
shop         ok       in 54d   60%   renew in 24d  1/1     shop.example.com +2

new: 403: check DNS
not ready: agent: nobody listens on 127.0.0.1:9765; start it
`

func example() View {
	return Build(one(func(in *Input) {
		in.Version = "1.0"
		in.Wanted = []*store.Wanted{wanted("new"), wanted("shop", "shop.example.com", "a.example.com", "b.example.com")}
		in.Attempts = []*store.Attempt{failedAttempt(now, "403: check DNS", "")}
		in.Attempts[0].Name = "new"
		in.Conditions = []Condition{{Name: "store", OK: true}, {Name: "agent", Message: "nobody listens on 127.0.0.1:9765; start it"}}
	}))
}

func TestTable(t *testing.T) {
	for _, c := range []struct {
		view View
		want string
	}{
		{example(), table},
		{View{Node: "lb1", Loading: true}, "spoacme on lb1, HAProxy not reachable: ready\n\nthe store was not read yet\n"},
		{View{Node: "lb1"}, "spoacme on lb1, HAProxy not reachable: ready\n\nno certificates: name them in SPOACME_CERTS, or run `spoacme issue NAME DOMAIN`\n"},
	} {
		var b strings.Builder
		if err := Table(&b, c.view); err != nil || b.String() != c.want {
			t.Errorf("%v\n%s\nwant\n%s", err, b.String(), c.want)
		}
	}
}

func ask(h http.Handler, method, path, accept string) (code int, kind, body string) {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Header().Get("Content-Type"), w.Body.String()
}

func TestPages(t *testing.T) {
	view := example()
	h := HTTP{View: func() View { return view }}.Handler()
	const plainText = "text/plain; charset=utf-8"
	for _, c := range []struct {
		path, accept string
		code         int
		kind, body   string
	}{
		{"/healthz", "", 200, plainText, "ok\n"},
		{"/readyz", "", 503, plainText, "ok store\nFAIL agent: nobody listens on 127.0.0.1:9765; start it\nnot ready\n"},
		{"/status?format=text", "", 200, plainText, table},
		{"/status", "text/html,application/xhtml+xml,*/*;q=0.8", 200, plainText, table},
		{"/", "", 200, plainText, "/status  /readyz  /healthz  /metrics\n"},
		{"/other", "", 404, plainText, "404 page not found\n"},
	} {
		code, kind, body := ask(h, "GET", c.path, c.accept)
		if code != c.code || kind != c.kind || body != c.body {
			t.Errorf("%s: %d %s\n%s", c.path, code, kind, body)
		}
	}

	_, kind, body := ask(h, "GET", "/status", "*/*")
	var back View
	if err := json.Unmarshal([]byte(body), &back); err != nil || kind != "application/json" || !reflect.DeepEqual(back, view) {
		t.Errorf("%v %s %s", err, kind, body)
	}
	for _, secret := range []string{"hush", "BEGIN", "TUlJ"} {
		if strings.Contains(body, secret) {
			t.Errorf("the status shows %q", secret)
		}
	}

	view.Conditions = []Condition{{Name: "store", OK: true}}
	if code, _, body := ask(h, "GET", "/readyz", ""); code != 200 || body != "ok store\nready\n" {
		t.Errorf("%d %s", code, body)
	}
	if code, _, _ := ask(h, "POST", "/status", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", code)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	view := example()
	view.Conditions = append(view.Conditions, view.Conditions[0])
	registry.MustRegister(Metrics(func() View { return view })...)
	_, _, body := ask(HTTP{View: example, Gather: registry}.Handler(), "GET", "/metrics", "")
	for _, line := range []string{
		`spoacme_certificate_not_after_seconds{certificate="shop"} 1.8000144e+09`,
		`spoacme_certificate_renew_at_seconds{certificate="shop"} 1.7974224e+09`,
		`spoacme_certificate_served{certificate="shop"} 1`,
		`spoacme_certificate_served{certificate="new"} 0`,
		`spoacme_certificate_renewal_failures{certificate="new"} 3`,
		`spoacme_certificate_renewal_failures{certificate="shop"} 0`,
		`spoacme_certificates{state="missing"} 1`,
		`spoacme_certificates{state="expired"} 0`,
		`spoacme_condition{condition="agent"} 0`,
		`spoacme_condition{condition="store"} 1`,
		"spoacme_ready 0",
		"spoacme_haproxy_reachable 1",
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("no %s in\n%s", line, body)
		}
	}
}

func TestServe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- HTTP{View: example}.Serve(ctx, ln) }()
	resp, err := http.Get("http://" + ln.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(body) != "ok\n" {
		t.Errorf("%s", body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (HTTP{View: example}).Serve(t.Context(), ln); err == nil {
		t.Error("served on a closed listener")
	}
}
