package settings

import (
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// Network splits an address of a setting into what net.Listen and net.Dial take:
// "unix@/run/a.sock" is unix, "127.0.0.1:9765" is tcp.
func Network(address string) (network, addr string) {
	if path, ok := strings.CutPrefix(address, "unix@"); ok {
		return "unix", path
	}
	return "tcp", address
}

// setPath takes an absolute path.
func setPath(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		path := strings.TrimPrefix(value, "unix@")
		if !filepath.IsAbs(path) {
			return errorf("%q is not an absolute path: begin it with /", short(value))
		}
		*field(s) = filepath.Clean(path)
		return nil
	}
}

// setPathAsLoaded takes a path as HAProxy names it, which may be relative.
func setPathAsLoaded(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if strings.ContainsAny(value, " ;<") {
			return errorf("%q can't be named in a command to HAProxy: use a path without space, ; and <", short(value))
		}
		*field(s) = value
		return nil
	}
}

// setListen takes HOST:PORT or unix@/PATH.
func setListen(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		network, path := Network(value)
		if network == "tcp" {
			return setTCP(field)(s, value)
		}
		if !filepath.IsAbs(path) {
			return errorf("%q is not an absolute path: write unix@/run/spoacme/agent.sock", short(value))
		}
		if len(path) > maxSocketPath {
			return errorf("%q is too long for a unix socket (%d bytes, the limit is %d): choose a shorter path", short(value), len(path), maxSocketPath)
		}
		*field(s) = value
		return nil
	}
}

// maxSocketPath leaves one byte of sun_path for the final NUL.
const maxSocketPath = 107

// setTCP takes HOST:PORT with a number as port.
func setTCP(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		host, port, err := net.SplitHostPort(value)
		n, portErr := strconv.ParseUint(port, 10, 16)
		switch {
		case err != nil || portErr != nil || n == 0:
			return errorf("%q is not HOST:PORT: write an address such as 127.0.0.1:9765", short(value))
		case host == "" || host == "*" || strings.ContainsAny(host, "/@ "):
			return errorf("%q has no host: write 127.0.0.1:%d, or 0.0.0.0:%d for all addresses", short(value), n, n)
		}
		*field(s) = net.JoinHostPort(host, strconv.FormatUint(n, 10))
		return nil
	}
}

// setOff takes "off" as well, which leaves the field empty.
func setOff(set func(*Settings, string) error) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if value == "off" {
			return nil
		}
		return set(s, value)
	}
}

func setStore(s *Settings, value string) error {
	scheme, rest, ok := strings.Cut(value, "://")
	switch {
	case !ok && filepath.IsAbs(value):
		return errorf("%q is a path: write file://%s", short(value), short(filepath.Clean(value)))
	case scheme == "consul":
		return setConsul(s, value)
	case scheme != "file":
		return errorf("%q is not a store: write file:///var/lib/spoacme, or consul://127.0.0.1:8500/le", short(value))
	case !filepath.IsAbs(rest):
		return errorf("%q names a host: write file:/// and the directory, with three slashes", short(value))
	case strings.ContainsAny(rest, "?#%"):
		return errorf("%q: a file store takes a plain path: write file:///var/lib/spoacme", short(value))
	}
	s.Store = "file://" + filepath.Clean(rest)
	return nil
}

// setConsul takes consul://[host:port]/prefix[?dc=name]. Credentials come from Consul's own environment.
func setConsul(s *Settings, value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return errorf("%q is not a URL: write consul://127.0.0.1:8500/le", short(value))
	case u.User != nil:
		return errorf("credentials don't belong here: use CONSUL_HTTP_TOKEN_FILE in the sidecar's own environment")
	case u.Fragment != "":
		return errorf("%q: nothing may follow the prefix but ?dc=NAME", short(value))
	}
	for name := range u.Query() {
		if name != "dc" {
			return errorf("%q: %s= is not an option of a Consul store: there is only dc=", short(value), short(name))
		}
	}
	s.Store = value
	return nil
}
