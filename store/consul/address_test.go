package consul

import "testing"

func TestParseURL(t *testing.T) {
	for _, test := range []struct {
		url  string
		env  map[string]string
		want address
		err  string
	}{
		{url: "consul://127.0.0.1:8500/le", want: address{scheme: "http", host: "127.0.0.1:8500", prefix: "le"}},
		{url: "consul://agent", want: address{scheme: "http", host: "agent:8500", prefix: "le"}},
		{url: "consul://[::1]:1/a/b/?dc=dc1", want: address{scheme: "http", host: "[::1]:1", prefix: "a/b", dc: "dc1"}},
		{url: "consul:///le", want: address{scheme: "http", host: "127.0.0.1:8500", prefix: "le"}},
		{
			url: "consul:///le", env: map[string]string{"CONSUL_HTTP_ADDR": "https://c.example:8501/proxy/"},
			want: address{scheme: "https", host: "c.example:8501", path: "/proxy", prefix: "le"},
		},
		{
			url: "consul:///le", env: map[string]string{"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"},
			want: address{scheme: "http", host: "localhost", socket: "/run/consul.sock", prefix: "le"},
		},
		{
			url: "consul://c.example:8501/le", env: map[string]string{"CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_ADDR": "other:1"},
			want: address{scheme: "https", host: "c.example:8501", prefix: "le"},
		},
		{url: "http://c/le", err: `SPOACME_STORE "http://c/le": use consul://host:port/prefix`},
		{url: "consul://c/le?dcc=x", err: `SPOACME_STORE "consul://c/le?dcc=x": unknown option "dcc", there is only dc`},
		{url: "consul://c/a//b", err: `SPOACME_STORE "consul://c/a//b": the prefix has an empty part`},
	} {
		got, err := parseURL(test.url, func(name string) string { return test.env[name] })
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: %v", test.url, err)
			}
		} else if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v", test.url, got, err)
		}
	}
}
