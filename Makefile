# make demo         spoacme at work beside a real HAProxy and a real ACME server; DEMO_ONCE=1 ends after the proof
# make test         all tests, those against real servers included; installs what they need below .tools/
# make bench        the figures of the README
#
# make build        bin/spoacme
# make lint         formatting, vet, staticcheck, shellcheck where it is installed
# make vuln         known vulnerabilities in what is compiled in
# make fuzz         every fuzz target for FUZZTIME
# make test-unit    the tests that need no server, with the race detector
# make test-servers the tests against real servers
# make simulation   the fleet in virtual time, SIMULATIONS seeds of everything that can go wrong
# make test-docker  the image and the compose file, run for real; needs Docker
# make tools        what the tests need, below .tools/
# make clean        removes all that was built here, the tools too

SHELL := /bin/bash
TOOLS := $(CURDIR)/.tools
GO_FILES = $$(git ls-files -co --exclude-standard '*.go')
HAPROXY_VERSIONS ?= 2.2 2.6 3.0 3.2
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD := go build -trimpath -buildvcs=false

.PHONY: demo test bench build lint vuln fuzz test-unit test-servers simulation test-docker clean
.PHONY: tools tools-haproxy tools-pebble tools-lego tools-chromium tools-consul tools-compose tools-lint tools-race

build:
	CGO_ENABLED=0 $(BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/spoacme ./cmd/spoacme

# HAProxy is the machine's own if it has one; see integration/demo/haproxy.go.
demo:
	@command -v go >/dev/null || { echo 'make demo: no Go here: install Go 1.26 or newer, see https://go.dev/doc/install' >&2; exit 1; }
	@echo 'What the demo needs is built first; it takes a few minutes the first time.'
	@integration/tools/step.sh 'build spoacme' $(MAKE) --no-print-directory build
	@integration/tools/step.sh 'build Pebble' $(MAKE) --no-print-directory tools-pebble
	@integration/tools/step.sh 'build the demo' $(BUILD) -o $(TOOLS)/bin/demo ./integration/demo
	@exec $(TOOLS)/bin/demo bin/spoacme

tools: tools-haproxy tools-pebble tools-chromium tools-consul

# Several versions of HAProxy, each with its own libraries: make tools-haproxy HAPROXY_VERSIONS=2.6
tools-haproxy:
	integration/tools/haproxy.sh $(TOOLS)/haproxy $(HAPROXY_VERSIONS)

# The ACME test server and its DNS server.
tools-pebble:
	cd integration/tools/pebble && $(BUILD) -o $(TOOLS)/bin/ tool

# The client that the benchmark compares with.
tools-lego:
	cd integration/tools/lego && $(BUILD) -o $(TOOLS)/bin/ tool

# The Consul servers: the current one, and the oldest that is supported.
tools-consul:
	cd integration/tools/consul && $(BUILD) -ldflags '-s -w' -o $(TOOLS)/bin/ tool
	integration/tools/debian-program.sh $(TOOLS)/bin/consul-1.8 bullseye consul usr/bin/consul 'Consul v1.8.'

# Compose 2, beside which Compose 1.29 may be what the machine has.
tools-compose:
	integration/tools/debian-program.sh $(TOOLS)/bin/docker-compose-2 trixie docker-compose \
		usr/libexec/docker/cli-plugins/docker-compose 'Docker Compose version 2.'

# The browser that looks at the statistics page.
tools-chromium:
	integration/tools/chromium.sh

# What looks at the source.
tools-lint:
	cd integration/tools/lint && $(BUILD) -o $(TOOLS)/bin/ tool

# The race detector needs a C compiler.
tools-race:
	integration/tools/need.sh gcc gcc libc6-dev

test: tools test-unit simulation test-servers

# The tests against real servers. Most of the time they wait for leases and deadlines, so two packages run at once.
test-servers: tools
	go test -p 2 -timeout 20m $$(go list ./integration/... | grep -v /simulation)

# It says what went wrong how often. Every tenth run has the real store of a fleet.
SIMULATIONS ?= 20000
simulation:
	go test -count=1 -v -timeout 20m ./integration/simulation -args -runs=$$(($(SIMULATIONS) * 9 / 10)) -consul=$$(($(SIMULATIONS) / 10))

test-unit: tools-race
	CGO_ENABLED=1 go test -race $$(go list ./... | grep -v /integration)

# Images stand in for those of the registries, so that this needs none; see integration/tools/images.sh.
test-docker: tools-compose
	integration/tools/images.sh
	go test -tags docker -count=1 -timeout 15m -v -run '^TestCompose' ./integration

# Medians, beside the alternatives in the same run. What it prints is also for benchstat: ROUNDS=10 for more samples.
ROUNDS ?= 5
bench: tools tools-lego
	integration/tools/need.sh wrk wrk
	integration/tools/need.sh jq jq
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./integration/bench -rounds $(ROUNDS)

lint: tools-lint
	@test -z "$$(gofmt -l $(GO_FILES))" || { gofmt -l $(GO_FILES); echo 'run gofmt -w on these'; exit 1; }
	go vet -tags docker ./...
	$(TOOLS)/bin/staticcheck -tags docker ./...
	@if command -v shellcheck >/dev/null; then shellcheck integration/*/*.sh .ci/run; fi

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

clean:
	rm -rf bin $(TOOLS)
