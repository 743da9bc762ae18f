# make tools      what tests, demo and benchmark need, below .tools/
# make test       all tests
# make lint       what CI looks at before the tests

SHELL := /bin/bash
TOOLS := $(CURDIR)/.tools
HAPROXY_VERSIONS ?= 2.2 2.6 3.0 3.2

.PHONY: tools tools-haproxy tools-pebble tools-lego tools-chromium tools-consul

tools: tools-haproxy tools-pebble tools-lego tools-chromium

# Several versions of HAProxy, each with its own libraries: make tools-haproxy HAPROXY_VERSIONS=2.6
tools-haproxy:
	integration/tools/haproxy.sh $(TOOLS)/haproxy $(HAPROXY_VERSIONS)

# The ACME test server and its DNS server.
tools-pebble:
	cd integration/tools/pebble && go build -trimpath -o $(TOOLS)/bin/ tool

# The client that the benchmark compares with.
tools-lego:
	cd integration/tools/lego && go build -trimpath -o $(TOOLS)/bin/ tool

# The Consul servers: the current one, and the oldest that is supported.
tools-consul:
	cd integration/tools/consul && go build -trimpath -ldflags '-s -w' -o $(TOOLS)/bin/ tool
	integration/tools/consul-1.8.sh $(TOOLS)/bin

# The browser that looks at the statistics page.
tools-chromium:
	integration/tools/chromium.sh
