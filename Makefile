# `make` shows the targets. The two that a newcomer needs are `make demo` and
# `make test`; both get the servers that they need first.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := bin/cdc-invalidator
CLI := github.com/cdc-invalidator/cdc-invalidator/internal/cli

# A release is what git says; the date is that of the commit, so that the same
# commit gives the same binary. Empty outside of a clone.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell TZ=UTC git show -s --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd HEAD 2>/dev/null)
LDFLAGS := -s -w -X $(CLI).version=$(VERSION) -X $(CLI).commit=$(COMMIT) -X $(CLI).date=$(DATE)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Arguments for the programs: make demo ARGS='--duration 1m', make test PKG=./sink RUN=TestX
ARGS ?=
PKG  ?= ./...
RUN  ?= .
# The package that takes longest begins first.
FIRST = $(if $(filter ./...,$(PKG)),./tests/integration)
# Each package may start servers of its own; two at a time suit two cores. A test that runs
# beside others waits for its servers most of the time, so there are four of those.
PARALLEL ?= 2

.PHONY: help build demo shop test test-containers test-matrix images check-packaging compose setup check bench lint verify clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/cdc-invalidator, static
	@echo "building $(BIN) $(VERSION)"
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/cdc-invalidator

demo: build ## show it at work on servers of its own, for 20 s (ARGS='--duration 1m')
	@scripts/setup-servers.sh
	@$(BIN) demo $(ARGS)

shop: build ## run the example application with servers of its own, until Ctrl-C (examples/shop)
	@scripts/setup-servers.sh
	@CGO_ENABLED=0 go build -trimpath -o bin/shop ./examples/shop
	@go run ./examples/shop/local $(ARGS)

test: check ## run all tests on real servers, with the race detector (PKG=./sink RUN=TestX)
	@scripts/setup-servers.sh --test
	@echo "test: $$(go version), $$(uname -sm), $$(getconf _NPROCESSORS_ONLN) cores"
	go test -race -count 1 -p $(PARALLEL) -parallel 4 -timeout 40m -run '$(RUN)' $(FIRST) $(PKG)

test-containers: ## run the tests that need servers on containers (CDC_POSTGRES=17 CDC_REDIS=redis:8, PKG, RUN)
	@RUN='$(RUN)' PARALLEL=$(PARALLEL) scripts/test-containers.sh $(if $(filter command,$(firstword $(origin PKG))),$(PKG))

test-matrix: ## the same on each supported pair of versions, for a nightly run (takes an hour)
	@RUN='$(RUN)' PARALLEL=$(PARALLEL) scripts/test-containers.sh --matrix $(if $(filter command,$(firstword $(origin PKG))),$(PKG))

consistency: ## readers, writers and failures against the promise, in long form, with a table of stale reads (RUN=scenario)
	@scripts/setup-servers.sh
	CDC_CONSISTENCY=long go test -count 1 -v -timeout 30m -run 'TestConsistency$(if $(filter command,$(firstword $(origin RUN))),/library/$(RUN))' ./tests/consistency

planted: ## plant known bugs one after the other, and see each caught (takes about ten minutes; RUN=name for some)
	@scripts/setup-servers.sh
	CDC_CONSISTENCY=planted go test -count 1 -v -timeout 90m -run '^TestPlanted$$$(if $(filter command,$(firstword $(origin RUN))),/$(RUN))' ./tests/consistency

images: ## build the local container images from Debian's packages, for where no registry answers
	@docker/images.sh build

compose: ## start docker/compose.yaml, see it invalidate (ARGS=down removes it)
	@docker/up.sh $(ARGS)

check-packaging: ## check Prometheus rules, systemd unit, Helm chart and release configuration
	@scripts/check-packaging.sh

check: # format and vet: what must be right before a test is worth its time
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go' 2>/dev/null || find . -name '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted (run gofmt -w):"; echo "$$unformatted"; exit 1; fi
	go vet ./...

bench: build ## measure the speed against pg_recvlogical (takes minutes; wants a quiet machine)
	@scripts/setup-servers.sh
	go run ./tests/bench $(ARGS)

lint: check ## go vet and staticcheck
	go run $(STATICCHECK) ./...

verify: lint ## lint, and see that go.mod and generated files are up to date
	go mod verify
	go mod tidy -diff
	@before=$$(git status --porcelain; git diff); go generate ./...; after=$$(git status --porcelain; git diff); \
	if [ "$$before" != "$$after" ]; then echo "generated files were not up to date:"; git status --short; exit 1; fi

clean: ## remove what was built
	rm -rf bin
