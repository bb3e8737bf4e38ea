# Needs Go, a C compiler (for the race detector), make and git. "make help"
# lists what there is.

VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# How long one fuzz target runs.
FUZZTIME = 30s
# How often make torture kills gridfan and cuts its power, and which of its tests,
# or those of make clients, run.
ROUNDS = 100
CUTS = 20
RUN = .

.DEFAULT_GOAL = build
.PHONY: help build test lint fuzz torture node cds postgres clients golden run bench bicep check check-full

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

build: ## bin/gridfan, static, stamped with its version
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/gridfan ./cmd/gridfan

# 15 minutes: some tests start brokers and applications, under the race
# detector and perhaps on two cores.
test: ## all tests, under the race detector
	go test -race -timeout 25m ./...

# "inherit" lets staticcheck.conf turn single checks off again.
lint: ## formatting, vet, outdated constructs, go.mod, staticcheck
	@files=$$(gofmt -l .) || exit 1; \
	if [ -n "$$files" ]; then echo "not formatted; run gofmt -w:"; echo "$$files"; exit 1; fi
	go vet ./...
	go fix -diff ./...
	go mod tidy -diff
	go tool staticcheck -checks=all,inherit ./...

# go test fuzzes one target of one package at a time.
# Before Go 1.27 the end of a fuzzer's time is now and then reported as a failure,
# "context deadline exceeded" without a failing input (golang.org/issue/75804).
# Shrinking inputs for a second only keeps it from standing still.
fuzz: ## every fuzz target for FUZZTIME
	@set -e; n=0; out=$$(mktemp); trap 'rm -f "$$out"' EXIT; \
	for pkg in $$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do \
		list=$$(go test -list '^Fuzz' "$$pkg") || { echo "$$list"; exit 1; }; \
		for target in $$(echo "$$list" | grep '^Fuzz' || true); do \
			echo "fuzz $$pkg $$target for $(FUZZTIME)"; \
			if ! go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$pkg" >"$$out" 2>&1; then \
				cat "$$out"; \
				if grep -q 'Failing input' "$$out" || ! grep -qx ' *context deadline exceeded' "$$out"; then exit 1; fi; \
				echo "the fuzzer ran into its own deadline and found nothing"; \
			fi; \
			tail -n 3 "$$out"; \
			n=$$((n+1)); \
		done; \
	done; \
	if [ $$n = 0 ]; then echo "there are no fuzz targets"; exit 1; fi; \
	echo "fuzzed $$n targets, $(FUZZTIME) each"

# Built as the user, run as root (see docs/crash-tests.md). In a mount namespace of
# their own, the disks of the tests go when the tests go.
torture: export PATH := $(PATH):/usr/sbin:/sbin
torture: ## kills, power cuts and broken disks; needs root or sudo, loop devices and ext4
	@set -e; sudo=; \
	if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; $$sudo true || { echo "make torture: needs root: it mounts file systems of its own" >&2; exit 1; }; fi; \
	if ! command -v mkfs.ext4 >/dev/null || ! command -v chattr >/dev/null; then \
		echo "make torture: installing e2fsprogs"; \
		{ $$sudo apt-get update -q && $$sudo apt-get install -qy e2fsprogs; } || { echo "make torture: mkfs.ext4 is missing; install e2fsprogs" >&2; exit 1; }; \
	fi; \
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go vet -tags torture ./cmd/internal/torture; \
	go tool staticcheck -tags torture -checks=all,inherit ./cmd/internal/torture; \
	go build -o "$$tmp/gridfan" ./cmd/gridfan; \
	go build -o "$$tmp/nats-server" github.com/nats-io/nats-server/v2; \
	go test -tags torture -c -o "$$tmp/torture" ./cmd/internal/torture; \
	cd "$$tmp"; $$sudo unshare --mount ./torture -test.v -test.timeout 2h -test.run '$(RUN)' \
		-kills $(ROUNDS) -cuts $(CUTS) -gridfan "$$tmp/gridfan" -nats-server "$$tmp/nats-server"

# Distributions may have a node that is too old for the packages.
node:
	@set -e; if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
		sudo=; if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; fi; \
		echo "installing nodejs and npm"; \
		{ $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends nodejs npm; } || { echo "make: node or npm is missing; see https://nodejs.org/en/download" >&2; exit 1; }; \
	fi; \
	if [ "$$(node -p 'parseInt(process.versions.node)')" -lt 20 ]; then echo "make: node $$(node --version) is too old, the packages need 20; see https://nodejs.org/en/download" >&2; exit 1; fi

# Its database is SQLite in WebAssembly, so that nothing is compiled.
cds: node ## polling against a real OData server, @sap/cds; needs node and npm
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	cp -R router/poll/odata/testdata/cds/. "$$tmp"; \
	npm install --prefix "$$tmp" --ignore-scripts --no-audit --no-fund --loglevel=error; \
	go vet -tags cds ./router/poll/odata; \
	go tool staticcheck -tags cds -checks=all,inherit ./router/poll/odata; \
	go test -tags cds -count=1 -v -run 'CDS' ./router/poll/odata -cds "$$tmp"

# The server is the tests' own, in a folder of theirs, on a port of this machine.
postgres: ## polling against a real PostgreSQL, installed from packages where it is missing
	@set -e; newest() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }; \
	bin=$$(newest); \
	if [ -z "$$bin" ] && command -v pg_config >/dev/null && [ -x "$$(pg_config --bindir)/initdb" ]; then bin=$$(pg_config --bindir); fi; \
	if [ -z "$$bin" ]; then \
		sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
		echo "make postgres: installing postgresql"; \
		{ $$sudo apt-get update -q && $$sudo apt-get install -qy postgresql; } || { echo "make postgres: PostgreSQL is missing; install its server" >&2; exit 1; }; \
		bin=$$(newest); \
	fi; \
	if [ ! -x "$$bin/initdb" ]; then echo "make postgres: there is no initdb in $${bin:-/usr/lib/postgresql}" >&2; exit 1; fi; \
	go vet -tags postgres ./router/poll/sqlrows; \
	go tool staticcheck -tags postgres -checks=all,inherit ./router/poll/sqlrows; \
	go test -tags postgres -count=1 -v -run '$(RUN)' ./router/poll/sqlrows -pgbin "$$bin"

clients: node ## JavaScript clients, unmodified, against gridfan; needs node and npm
	go vet -tags clients ./cmd/internal/clients
	go tool staticcheck -tags clients -checks=all,inherit ./cmd/internal/clients
	go test -tags clients -count=1 -timeout 10m -run '$(RUN)' -v ./cmd/internal/clients

# A package whose tests know -update declares it as flag.Bool("update", …).
golden: ## rewrite golden files; review the diff
	@set -e; dirs=$$(git grep -lE --untracked 'flag\.Bool\("update"' -- '*_test.go' | xargs -rn1 dirname | sort -u); \
	if [ -z "$$dirs" ]; then echo "no package has golden files"; exit 1; fi; \
	for dir in $$dirs; do echo "go test ./$$dir -update"; go test "./$$dir" -update; done; \
	git --no-pager diff --stat

run: build ## start everything locally with a simulated Dynamics estate
	bin/gridfan dev

bench: ## each benchmark of the whole program once, and look-ups among ids
	go test -run='^$$' -bench=. -benchtime=1x -timeout 30m ./cmd/internal/app
	go test -run='^$$' -bench='Lookup|Open' ./router/dedup

bicep: ## compile and lint the templates; needs the Bicep CLI
	@command -v bicep >/dev/null || { echo "make bicep: the Bicep CLI is missing; see https://aka.ms/bicep-install" >&2; exit 1; }
	@set -e; files=$$(find bicep -name '*.bicep' -o -name '*.bicepparam'); \
	if [ -z "$$files" ]; then echo "make bicep: bicep/ has no templates" >&2; exit 1; fi; \
	for f in $$files; do case $$f in \
		*.bicepparam) echo "bicep build-params $$f"; bicep build-params "$$f" --stdout >/dev/null;; \
		*) echo "bicep lint $$f"; bicep lint "$$f"; bicep build "$$f" --stdout >/dev/null;; \
	esac; done

# One after another also under -j: tests beside a lint time out on small machines.
check: ## lint, test and build: what every change must pass
	$(MAKE) lint
	$(MAKE) test
	$(MAKE) build

check-full: ## what takes longer or needs more of the machine; CI runs it after check
	$(MAKE) fuzz FUZZTIME=30s
	$(MAKE) cds
	$(MAKE) postgres
	$(MAKE) torture ROUNDS=25
	$(MAKE) deploy
	$(MAKE) clients
	@echo "check-full ran: every fuzz target for half a minute, polling against an OData server and PostgreSQL, the crash tests with 25 kills and $(CUTS) power cuts, and clients of another language"
