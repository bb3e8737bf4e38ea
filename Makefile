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
# Where make image-push pushes to, as REGISTRY/NAME:TAG; several apart by spaces.
IMAGE =
# Its times and labels are the commit's, so that two builds have one digest.
IMAGE_BUILD = go run ./cmd/internal/image build -version '$(VERSION)' \
	-revision "$$(git rev-parse HEAD 2>/dev/null || true)" -created "$$(git log -1 --format=%ct 2>/dev/null || echo 0)"
# With Go's own tools a module that only make sbom needs stays out of go.mod.
CYCLONEDX = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
ACTIONLINT = github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

.DEFAULT_GOAL = build
.PHONY: help build release image image-push sbom container test lint fuzz torture node cds postgres clients workflows golden run bench bicep bicepcheck check check-full

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

build: ## bin/gridfan, static, stamped with its version
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/gridfan ./cmd/gridfan

image: ## bin/gridfan-image, an OCI layout for amd64 and arm64, and .tar for docker load
	@mkdir -p bin
	$(IMAGE_BUILD) -out bin/gridfan-image

image-push: image ## push it to IMAGE=registry/name:tag; docker login first
	@[ -n "$(IMAGE)" ] || { echo "make image-push: say where to, as in make image-push IMAGE=ghcr.io/gridfan/gridfan:v1" >&2; exit 1; }
	go run ./cmd/internal/image push -from bin/gridfan-image $(IMAGE)

sbom: ## bin/gridfan.cdx.json, a CycloneDX list of what is compiled into gridfan
	@mkdir -p bin
	CGO_ENABLED=0 go run $(CYCLONEDX) app -json -licenses -std -packages=false -main cmd/gridfan -output bin/gridfan.cdx.json .

# Windows wants its programs to end in .exe. A GOOS of the caller's would be that of
# the tool that lists the parts, too.
release: ## bin/release: binaries for all platforms, the list of their parts, checksums
	rm -rf bin/release
	@set -e; for p in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		os=$${p%/*}; arch=$${p#*/}; file=bin/release/gridfan-$$os-$$arch; [ $$os != windows ] || file=$$file.exe; \
		echo "go build $$file"; \
		CGO_ENABLED=0 GOFLAGS= GOOS=$$os GOARCH=$$arch go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $$file ./cmd/gridfan; \
	done
	$(MAKE) sbom
	cp bin/gridfan.cdx.json bin/release/
	cd bin/release && sha256sum * >../SHA256SUMS && mv ../SHA256SUMS .

# Built as the user, run as root; the mounts go with the mount namespace.
container: export PATH := $(PATH):/usr/sbin:/sbin
container: ## the image's file system, started as a runtime does: read-only, not root; needs root or sudo
	@set -e; sudo=; \
	if [ "$$(id -u)" != 0 ]; then sudo="sudo -n"; $$sudo true || { echo "make container: needs root: it mounts and changes users" >&2; exit 1; }; fi; \
	tmp=$$(mktemp -d); trap '$$sudo rm -rf "$$tmp"' EXIT; \
	go vet -tags container ./cmd/internal/image; \
	go tool staticcheck -tags container -checks=all,inherit ./cmd/internal/image; \
	$(IMAGE_BUILD) -version container -out "$$tmp/image" -platforms "linux/$$(go env GOARCH)"; \
	go test -tags container -c -o "$$tmp/container" ./cmd/internal/image; \
	cd "$$tmp"; $$sudo unshare --mount ./container -test.v -test.run '^TestContainer' -layout "$$tmp/image" -version container

workflows: ## lint the hosted workflows
	go run $(ACTIONLINT) -color

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
	go vet -tags postgres ./router/poll/sqlrows ./cmd/internal/app; \
	go tool staticcheck -tags postgres -checks=all,inherit ./router/poll/sqlrows ./cmd/internal/app; \
	go test -tags postgres -count=1 -v -run '$(RUN)' ./router/poll/sqlrows -pgbin "$$bin"; \
	go test -tags postgres -count=1 -v -run 'Postgres' ./cmd/internal/app -pgbin "$$bin"

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
	for f in $$files; do \
		echo "bicep lint $$f"; out=$$(bicep lint "$$f" 2>&1) || { echo "$$out"; exit 1; }; \
		if echo "$$out" | grep -E ' : (Error|Warning) '; then echo "make bicep: warnings count, too" >&2; exit 1; fi; \
		case $$f in \
		*.bicepparam) echo "bicep build-params $$f"; bicep build-params "$$f" --stdout >/dev/null;; \
		*) echo "bicep build $$f"; bicep build "$$f" --stdout >/dev/null;; \
	esac; done

# BICEPCHECK is the folder of an offline checker of Bicep, a Go module, with the data of
# resource types beside it, in azure-types.
BICEPCHECK =
bicepcheck: ## check the templates without the Bicep CLI, by the checker in BICEPCHECK
	@if [ ! -f "$(BICEPCHECK)/go.mod" ]; then echo "make bicepcheck: BICEPCHECK=$(BICEPCHECK) is no checker" >&2; exit 1; fi
	@set -e; files=; for f in bicep/main.bicep bicep/subscriptions.bicep bicep/*.bicepparam; do files="$$files $(CURDIR)/$$f"; done; \
	out=$$(cd "$(BICEPCHECK)" && go run . -types ../azure-types $$files 2>&1) || { echo "$$out"; exit 1; }; \
	if [ -n "$$out" ]; then echo "$$out"; echo "make bicepcheck: warnings count, too" >&2; exit 1; fi; \
	echo "bicepcheck found nothing in $$(echo $$files | wc -w) files and their modules"

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
	$(MAKE) clients
	$(MAKE) image
	$(MAKE) container
	$(MAKE) sbom
	$(MAKE) workflows
	@echo "check-full ran: every fuzz target for half a minute, polling against an OData server and PostgreSQL, the crash tests with 25 kills and $(CUTS) power cuts, clients of another language, and the container image, read-only and not as root"
