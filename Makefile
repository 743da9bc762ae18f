# make tools      what tests, demo and benchmark need, below .tools/
# make test       all tests, those against real servers included
# make test-unit  the tests that need no server, with the race detector
# make lint       formatting, vet, staticcheck, shellcheck where it is installed
# make vuln       known vulnerabilities in what is compiled in
# make fuzz       every fuzz target for FUZZTIME

SHELL := /bin/bash
TOOLS := $(CURDIR)/.tools
GO_FILES = $$(git ls-files -co --exclude-standard '*.go')
HAPROXY_VERSIONS ?= 2.2 2.6 3.0 3.2

.PHONY: tools tools-haproxy tools-pebble tools-lego tools-chromium tools-consul tools-lint
.PHONY: test test-unit lint vuln fuzz

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

# What looks at the source.
tools-lint:
	cd integration/tools/lint && go build -trimpath -o $(TOOLS)/bin/ tool

test: tools
	go test ./...

test-unit:
	go test -race $$(go list ./... | grep -v /integration)

lint: tools-lint
	@test -z "$$(gofmt -l $(GO_FILES))" || { gofmt -l $(GO_FILES); echo 'run gofmt -w on these'; exit 1; }
	go vet ./...
	$(TOOLS)/bin/staticcheck ./...
	@if command -v shellcheck >/dev/null; then shellcheck integration/tools/*.sh; fi

vuln: tools-lint
	$(TOOLS)/bin/govulncheck ./...

FUZZTIME ?= 30s

# Go fuzzes one target of one package at a time.
fuzz:
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done
