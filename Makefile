# Run `make` for a list of targets.

GO      ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)

# gofmt, go itself for the linters and the tests that build varve, losetup.
export PATH := $(shell $(GO) env GOROOT)/bin:$(PATH):/usr/sbin:/sbin

# A checkout that belongs to another user (sudo make, a CI container) must not
# make git, and through it go build, refuse.
export GIT_CONFIG_COUNT   := 1
export GIT_CONFIG_KEY_0   := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)

# Linters are built at these versions by the go command; nothing is installed.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEPGUARD    := github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@v2.2.1

# Makes the Debian package; it reads no file of the system and needs no dpkg.
NFPM := $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

UNIT        := ./overlay/... ./chain/... ./fs/... ./cmd/...
CRASH       := PowerCut|Faults$$

# Runs the tests in parts, some at a time, shows what it does and finds what hangs;
# what the parts are is in integration/testrun/parts.go.
TESTRUN = $(GO) build -o bin/testrun ./integration/testrun && bin/testrun $(AS_ROOT)

# Tests mount, attach loop devices and become other users. As root they have a
# home, and so a build cache, of their own.
ifneq ($(shell id -u),0)
AS_ROOT := -exec 'sudo --preserve-env=VARVE_BIN,VARVE_LONG,VARVE_RACE,VARVE_PATIENCE,VARVE_TURN,GOGC env PATH=$(PATH)'
endif

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/varve, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)' -o bin/varve ./cmd/varve

.PHONY: man
man: build ## bin/man, the manual pages, and bin/completion
	rm -rf bin/man bin/completion
	bin/varve man bin/man
	mkdir bin/completion
	bin/varve completion bash >bin/completion/varve.bash
	bin/varve completion zsh >bin/completion/_varve
	bin/varve completion fish >bin/completion/varve.fish

.PHONY: install uninstall
install: man ## install below PREFIX=/usr/local, or into DESTDIR=
	PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install.sh install
uninstall: ## take away what install has put there
	PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install.sh uninstall

.PHONY: deb
deb: man ## bin/varve_VERSION_ARCH.deb, a Debian package
	@GO='$(GO)' VERSION='$(VERSION)' packaging/deb.sh $(NFPM)

.PHONY: deps
deps: ## install what the tests need and this machine lacks (Debian; root or sudo)
	@packaging/install-deps.sh

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, the import rule
	@files=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l 2>&1); \
	if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@# depguard goes on without its rules when it cannot read them.
	@echo depguard ./...; out=$$($(GO) run $(DEPGUARD) ./... 2>&1); status=$$?; \
	case "$$out" in *"default configuration"*) status=1;; esac; \
	if [ $$status != 0 ]; then echo "$$out"; exit 1; fi

.PHONY: check-fast
check-fast: deps lint ## lint and the unit tests that take little time
	@$(TESTRUN) fast

.PHONY: test
test: deps build lint ## everything that is tested; some 20 minutes on 2 cores
	@export VARVE_BIN='$(CURDIR)/bin/varve'; $(TESTRUN) test

# Every place of every record, every call of every scenario, then seed after seed.
CRASHFOR ?= 30m
SEED     ?= 1
.PHONY: crash
crash: ## power cuts and faults, simulated, for CRASHFOR=30m, from SEED=1 on
	$(GO) test -run '$(CRASH)' -timeout 0 -v $(AS_ROOT) ./overlay ./chain -args -crash.stride=1 -fault.stride=1 -crash.for=$(CRASHFOR) -crash.seed=$(SEED)

.PHONY: test-long
test-long: deps build lint ## what takes longer: more seeds and steps, varve itself with the race detector
	@$(TESTRUN) long

SOAK ?= 30m
.PHONY: soak
soak: deps build ## everything at once on one disk, and the daemon must not grow (SOAK=30m SEED=1)
	VARVE_BIN=$(CURDIR)/bin/varve $(GO) test -count=1 -v -timeout 0 $(AS_ROOT) ./integration -run '^TestSoak$$' -soak.time $(SOAK) -soak.seed $(SEED)

# Scratch files, some eight times the disk's size, go below BENCHDIR.
BENCHDIR   ?= $(CURDIR)
BENCHFLAGS ?=
BENCH = @packaging/install-deps.sh --bench && $(GO) build -o bin/bench ./integration/bench && \
	$(if $(filter 0,$(shell id -u)),,sudo) bin/bench -varve bin/varve -dir $(BENCHDIR) $(BENCHFLAGS)

.PHONY: bench bench-quick bench-full
bench: build ## varve beside its peers, against the targets, in under 30 minutes (BENCHDIR= BENCHFLAGS="-only REGEX -json FILE ...")
	$(BENCH) -suite targets
bench-quick: override BENCHFLAGS := -rounds 2 -seconds 1 $(BENCHFLAGS)
bench-quick: build ## a part of that in under 5 minutes
	$(BENCH) -suite quick
bench-full: build ## every row, contestant and depth
	$(BENCH) -suite full

# What a target finds goes into testdata/fuzz/ of its package, and from then on
# every `go test` tries it.
FUZZTIME  ?= 1m
FUZZFLAGS ?=

.PHONY: fuzz
fuzz: deps ## all fuzz targets in turn, FUZZTIME=1m for each (also FUZZFLAGS=-parallel=1)
	@failed=; for package in $$($(GO) list $(UNIT)); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $(FUZZFLAGS) $$package || failed="$$failed $$target"; \
		done; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

.PHONY: bench-go
bench-go: ## Go's own benchmarks: requests inside varve, opening a disk, first touches
	$(GO) test -run '^$$' -bench HotPath -benchmem ./chain
	$(GO) test -run '^$$' -bench 'Open|Resolve' -benchmem -benchtime 40x ./integration/bigchain

.PHONY: test-rules
test-rules: deps ## break each rule of docs/inside.md on purpose; a test must fail each time
	$(GO) run ./integration/rules $(AS_ROOT) $(RULES)

.PHONY: quickstart
quickstart: ## a small disk, mounted and snapshotted, to try things on (root or sudo)
	@packaging/quickstart.sh start

.PHONY: quickstart-clean
quickstart-clean: ## undo quickstart
	@packaging/quickstart.sh clean

.PHONY: clean
clean: ## remove what was built and downloaded
	@if [ -e quickstart ]; then echo "quickstart/ is still there: run make quickstart-clean first" >&2; exit 1; fi
	rm -rf bin .cache
