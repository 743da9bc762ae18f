package consul

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// address is where the store is.
type address struct {
	scheme string // http or https
	host   string // host:port; what the Host header says for a socket
	socket string // path of a unix socket
	path   string // before /v1, for a Consul behind a reverse proxy
	prefix string // of all keys, with no slash at either end
	dc     string
}

func (a address) String() string {
	if a.socket != "" {
		return "unix://" + a.socket
	}
	return a.scheme + "://" + a.host + a.path
}

// parseURL reads consul://[host:port]/prefix[?dc=name] and what Consul's environment adds to it.
func parseURL(text string, getenv func(string) string) (address, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "consul" || u.User != nil || u.Fragment != "" {
		return address{}, fmt.Errorf("SPOACME_STORE %q: use consul://host:port/prefix", text)
	}
	a := address{scheme: "http", host: u.Host, prefix: strings.Trim(u.Path, "/"), dc: u.Query().Get("dc")}
	for name := range u.Query() {
		if name != "dc" {
			return address{}, fmt.Errorf("SPOACME_STORE %q: unknown option %q, there is only dc", text, name)
		}
	}
	if a.prefix == "" {
		a.prefix = "le"
	}
	if strings.Contains(a.prefix, "//") {
		return address{}, fmt.Errorf("SPOACME_STORE %q: the prefix has an empty part", text)
	}
	if a.host == "" {
		a.fromEnv(getenv("CONSUL_HTTP_ADDR"))
	} else if u.Port() == "" {
		a.host += ":8500"
	}
	if tls, _ := strconv.ParseBool(getenv("CONSUL_HTTP_SSL")); tls {
		a.scheme = "https"
	}
	if strings.HasPrefix(getenv("CONSUL_HTTP_ADDR"), "https://") && a.socket == "" {
		a.scheme = "https"
	}
	return a, nil
}

// fromEnv reads what CONSUL_HTTP_ADDR may be: host:port, http://…, https://…, unix:///path.
func (a *address) fromEnv(env string) {
	if socket, ok := strings.CutPrefix(env, "unix://"); ok {
		a.socket, a.host = socket, "localhost"
		return
	}
	if rest, ok := strings.CutPrefix(env, "https://"); ok {
		a.scheme, env = "https", rest
	}
	env = strings.TrimPrefix(env, "http://")
	host, path, _ := strings.Cut(env, "/")
	if a.host = host; host == "" {
		a.host = "127.0.0.1:8500"
	}
	if path = strings.Trim(path, "/"); path != "" {
		a.path = "/" + path
	}
}
