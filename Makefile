# SPDX-License-Identifier: Apache-2.0
# Building, testing and checking coracle. `make help` lists the targets.

# These need no Go, or install it first.
WITHOUT_GO := help deps test subjects shellcheck clean
ifneq ($(filter-out $(WITHOUT_GO),$(or $(MAKECMDGOALS),build)),)
GO ?= $(shell packaging/go.sh)
ifeq ($(GO),)
$(error no Go: see the message above)
endif
export PATH := $(dir $(GO)):$(PATH)
endif
ARCH ?= $(if $(GO),$(shell $(GO) env GOHOSTARCH))
BUILD := build

# The same tags and settings everywhere, so that packages are compiled once for building and testing.
TAGS := no_btrfs no_zfs no_devmapper grpcnotrace
export CGO_ENABLED := 0
# For programs that tests build; and the same Go for them.
# Debug information is left out of what is compiled, not of the program alone: a tenth less to compile.
export GOFLAGS := -buildvcs=false -gcflags=all=-dwarf=false
# Tests that rapid drives draw the same in each run, as testenv.Seed has it; 0 is another seed each time.
export RAPID_SEED ?= 1
GOBUILD := $(GO) build -tags '$(TAGS)'

# Version: upstream's with +coracle behind it; a tag such as v1.37.0+coracle1 names a release.
KUBERNETES := $(shell sed -n 's|^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\)$$|\1|p' go.mod)
HELM := $(shell sed -n 's|^[[:space:]]*helm.sh/helm/v4 \(v[0-9.]*\)$$|\1|p' go.mod)
VERSION ?= $(or $(shell git describe --tags --exact-match --match 'v*+coracle*' 2>/dev/null),$(KUBERNETES)+coracle)
COMMIT := $(or $(shell git rev-parse HEAD 2>/dev/null),unknown)
TREE := $(if $(shell git status --porcelain --untracked-files=no 2>/dev/null),dirty,clean)
DATE := $(or $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null),1970-01-01T00:00:00Z)
part = $(word $2,$(subst ., ,$(patsubst v%,%,$1)))
# set NAME=VALUE in each place that upstream reads its version from.
set = $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $p.$1)
# What stays the same from commit to commit goes into tests and embedded programs too: they are not linked again each
# time.
STABLE_X := $(call set,gitVersion=$(VERSION)) $(call set,gitMajor=$(call part,$(KUBERNETES),1)) $(call set,gitMinor=$(call part,$(KUBERNETES),2))
COMMIT_X := $(call set,gitCommit=$(COMMIT)) $(call set,gitTreeState=$(TREE)) $(call set,buildDate=$(DATE))

# RELEASE_KEYS=THRESHOLD,KEY,KEY…: the public keys of minisign that sign bundles. A build without them trusts the keys of its machine alone.
KEYS_X := $(if $(RELEASE_KEYS),-X github.com/coracle-k8s/coracle/internal/bundle.releaseKeys=$(RELEASE_KEYS))

GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 10s
SHELL_SCRIPTS = install.sh internal/slots/coracle-start .ci/run test/bench/run.sh test/bench/upstream/build.sh $(wildcard packaging/*.sh test/harness/*.sh test/guests/*.sh test/arm64/*.sh)

.DEFAULT_GOAL := build
.PHONY: help build embedded deps debs-lock release reproducible install test unit scenarios tests e2e older twolevels e2e-mixed compat e2e-upgrade level-data s3-test foreign-test conformance guest-conformance gateway-conformance install-test fresh-test play console flakes chaos soak race e2e-ha acme-test upstream bench bench-ha bench-net bench-ingress ingress-clients ingress-soak ingress-walk console-test bench-store powercut guest-test guest-nodes proxy-test arm64-test fuzz lint verify subjects fmt vet tidy imports shellcheck cross docs docs-check console-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages that building and testing need
	@packaging/deps.sh build test lint

debs-lock: ## write packaging/debs.lock again: which Debian packages a release carries
	@packaging/debs-lock.sh

# The compiler collects garbage less often: a tenth less processor time for a fifth more memory, 465 MB for its largest
# package of ours.
build embedded: export GOGC := $(or $(GOGC),400)
build: embedded ## bin/coracle for this machine (or ARCH=arm64)
	@echo 'building $(or $(OUT),bin/coracle) $(VERSION) for $(ARCH)'
	@GO='$(GO)' packaging/overlay.sh $(BUILD)/$(ARCH)/overlay
	@GOROOT='$(CURDIR)/$(BUILD)/$(ARCH)/overlay/goroot' GOOS=linux GOARCH=$(ARCH) $(GO) build -tags '$(TAGS)$(if $(TEST_TAG), $(TEST_TAG))' -overlay $(BUILD)/$(ARCH)/overlay/overlay.json $(if $(TRIMPATH),-trimpath) -ldflags '-s -w $(STABLE_X) $(COMMIT_X) $(KEYS_X) -X helm.sh/helm/v4/internal/version.version=$(HELM)' -o $(or $(OUT),bin/coracle) ./cmd/coracle

embedded: ## the programs embedded in coracle, into internal/embedded/files/ARCH
	@GO='$(GO)' TAGS='$(TAGS)' TRIMPATH='$(TRIMPATH)' packaging/embedded.sh $(ARCH) $(BUILD)/$(ARCH)$(if $(TRIMPATH),-release)

# A release has the same bytes wherever it is built (docs/release.md): Go is that of go.mod, and no setting of the machine counts.
ARCHS ?= amd64 arm64
release: export GOTOOLCHAIN := local
release: export GOAMD64 := v1
release: export GOARM64 := v8.0
release: ## dist/: binaries for amd64 and arm64, packed, their bills of materials, and checksums; KEYS='file…' signs these; ARCHS=amd64 of one
	@rm -rf dist && mkdir -p dist
	@exact=$$(packaging/go.sh --exact) && for arch in $(ARCHS); do $(MAKE) build GO="$$exact" ARCH=$$arch TRIMPATH=1 OUT=dist/coracle-linux-$$arch || exit 1; done && \
	  GO="$$exact" VERSION='$(VERSION)' KEYS='$(abspath $(KEYS))' packaging/dist.sh dist $(ARCHS)

reproducible: ## the release of what is committed, built twice and compared: in two folders, or with ROOT=1 also in an empty root; ARCHS=amd64 of one (20 GB, half an hour or more)
	@[ -z '$(ROOT)' ] || packaging/deps.sh build test fresh
	@GO='$(GO)' TAGS='$(TAGS)' ROOT='$(ROOT)' SHARED='$(SHARED)' packaging/reproducible.sh $(BUILD)/reproducible $(ARCHS)

install: ## build and install on this machine (root)
	./install.sh

# Tests run with -vet=off: make lint looks at everything once, and vetting 3,000 dependencies again takes ten minutes.
GOTEST = $(GO) run ./test/report $(GO) test -json -vet=off
# Scenarios that call t.Parallel mostly wait: they run beside one another at the end of their package, however few processors there are (Go's default).
SCENARIOS = $(GO) test -json -vet=off -count=1 -p 1 -parallel 6 -tags '$(TAGS) e2e'
E2E = CORACLE_BIN=$(CURDIR)/bin/coracle $(GO) run ./test/report $(SCENARIOS)

# What make test promises its tests: one that misses any of this fails, where it is skipped otherwise.
PROMISED := root,embedded,loop-device,systemd,xfs,crun,node,minisign

# STEPS='build unit': some of its steps.
test: ## everything that has to pass: installs what is missing, builds, go test ./..., end to end (root)
	@[ "$$(id -u)" = 0 ] || { echo 'error: tests make namespaces, mounts and containers of their own, which takes root: sudo make test. Without root: make unit' >&2; exit 1; }
	@packaging/deps.sh build test console
	@CORACLE_TEST_REQUIRE=$(PROMISED)$$(command -v linux.uml >/dev/null && echo ,user-mode-linux)$$([ ! -e /dev/fuse ] || echo ,fuse) packaging/steps.sh $(or $(STEPS),build tests)

# Half of what unit tests take is waiting (the Service proxy's, the balancer's, the networks'): four packages at a time on two processors, and those
# first that take minutes.
# Of raftstore, the longest, whose tests run one after the other, the scripts from j on have a process of their own: half of its time.
SCRIPTS := -skip '^TestScenarioScripts$$/^[j-z]'
LONG_UNITS := ./raftstore ./server/apiserver ./proxy ./controllers ./cni ./raftstore/upstream

# WITHOUT: packages to leave out, for .ci/run, which has their tests under the race detector. $1 stands before each command.
UNITS = $1 $(GO) test -json -vet=off -p 4 -timeout 40m -tags '$(TAGS)' -ldflags '$(STABLE_X)' $(SCRIPTS) $(LONG_UNITS) \
	  $(if $(WITHOUT),$(filter-out $(shell $(GO) list $(WITHOUT)),$(shell $(GO) list -tags '$(TAGS)' ./...)),./...) \
	  --and $1 $(GO) test -json -vet=off -timeout 40m -tags '$(TAGS)' -ldflags '$(STABLE_X)' $(subst -skip,-run,$(SCRIPTS)) ./raftstore
unit: ## go test ./...; tests that need root are left out without it
	@$(GO) run ./test/report $(call UNITS)

# Scenarios mostly wait: three processes of them run side by side. Half of test/e2e, most of whose tests run one after the
# other, has a process of its own. With five, a leader may lack processor time for its heartbeats.
E2E_APART := ^Test(OneNode|StoreQuota|HardeningGuideHolds|LocalStorage|ThreeServers|MachineWithoutClockBattery|NetworkChangesWithoutAgent|StolenNodeOpensNothing|RotateWithSeveralServers)$$
ALL_SCENARIOS = CORACLE_TWOLEVELS_BIN=$(CURDIR)/bin/coracle-twolevels $(E2E) -p 2 -timeout 40m -skip '$(E2E_APART)' ./test/e2e/... ./test/ha/... ./test/nodes/... ./test/install/... ./test/nodepower/... ./test/upgrade/... \
	  --and $(SCENARIOS) -timeout 40m -run '$(E2E_APART)' ./test/e2e
scenarios: build twolevels ## e2e and install-test, side by side (root)
	@$(ALL_SCENARIOS)

# Scenarios leave half of two processors: unit tests have that half, and give way to them.
tests: build twolevels ## unit and scenarios, side by side (root)
	@$(ALL_SCENARIOS) --and $(call UNITS,nice -n 5)

e2e: build twolevels ## real kubectl against a real server, in namespaces of its own (root)
	@CORACLE_TWOLEVELS_BIN=$(CURDIR)/bin/coracle-twolevels $(E2E) -timeout 40m ./test/e2e/... ./test/ha/... ./test/nodes/... ./test/nodepower/... ./test/upgrade/...

# Without RUN, and where RUN names it, TestMixedVersions runs too, which wants an older build.
MIXED := $(if $(RUN),$(findstring Mixed,$(RUN)),all)

# SHORT=1: at their short length, a quarter of an hour.
e2e-ha: build $(if $(MIXED),older) ## the scenarios of several machines at their whole length, and those that depend on real time: every fault on every machine, hours (root); RUN=… of some, SHORT=1
	@CORACLE_HA_WHOLE=$(if $(SHORT),short,1) $(if $(MIXED),CORACLE_OLDER_BIN=$(CURDIR)/bin/coracle-older) $(subst /report,/report -v,$(E2E)) -timeout 6h $(if $(RUN),-run '$(RUN)') ./test/ha/... ./test/nodes/...

acme-test: build ## certificates by ACME from pebble, which is built from its module: an account that is refused, a leader that dies, full disks (root, the Go module proxy, minutes)
	@CORACLE_HA_WHOLE=short $(subst /report,/report -v,$(E2E)) -timeout 40m -run '^TestACMEOrdersSurviveFaults$$' ./test/ha/

# OLDER: another version to run beside this one: a program, such as a release's, or a tag or commit of this repository, which is built in a worktree below build.
# Without it this tree is built once more, and says that it is older.
older: build ## bin/coracle-older, from OLDER=file, tag or commit (minutes)
	@[ -n '$(OLDER)' ] || GOOS=linux $(GOBUILD) -ldflags '-s -w $(STABLE_X) $(COMMIT_X) -X github.com/coracle-k8s/coracle/internal/version.protocol=1' -o bin/coracle-older ./cmd/coracle
	@[ -z '$(OLDER)' ] || packaging/older.sh '$(OLDER)' bin/coracle-older $(BUILD)/older

# A program that knows two levels, of two minor versions of Kubernetes (internal/level). It is for tests: make release refuses it.
twolevels: build ## bin/coracle-twolevels, this tree with a level more
	@$(MAKE) --no-print-directory build OUT=bin/coracle-twolevels TEST_TAG=twolevels

UPGRADE = CORACLE_OLDER_BIN=$(CURDIR)/bin/coracle-older CORACLE_TWOLEVELS_BIN=$(CURDIR)/bin/coracle-twolevels $(subst /report,/report -v,$(E2E))

compat: build older twolevels ## this version on the directory of the one before it and back, under load, at each level; OLDER=tag or commit (root, minutes)
	@[ -n '$(OLDER)' ] || { echo 'error: OLDER says from which version: make compat OLDER=TAG, a commit, or a program' >&2; exit 2; }
	@CORACLE_HA_WHOLE=short $(UPGRADE) -timeout 30m -run '$(or $(RUN),^TestCompat)' ./test/upgrade/

e2e-upgrade: build older twolevels ## clusters that are upgraded and taken back machine by machine under load; OLDER=tag or commit, RUN=… of some (root, an hour)
	@[ -n '$(OLDER)' ] || { echo 'error: OLDER says from which version: make e2e-upgrade OLDER=TAG, a commit, or a program' >&2; exit 2; }
	@CORACLE_HA_WHOLE=1 $(UPGRADE) -timeout 3h $(if $(RUN),-run '$(RUN)') ./test/upgrade/

level-data: build ## a server's data directory, packed into FILE=test/upgrade/testdata/levelN.tar.gz: once for each level (root)
	@[ -n '$(FILE)' ] || { echo 'error: FILE says into which file: make level-data FILE=test/upgrade/testdata/level2.tar.gz' >&2; exit 2; }
	@[ ! -e '$(FILE)' ] || { echo 'error: $(FILE) is there: a directory of a level stays as it was written' >&2; exit 2; }
	@CORACLE_LEVEL_DATA='$(abspath $(FILE))' $(E2E) -timeout 10m -run '^TestMakeLevelData$$' ./test/upgrade/

e2e-mixed: older ## this version and the one before it in one cluster (root)
	@CORACLE_OLDER_BIN=$(CURDIR)/bin/coracle-older $(E2E) -timeout 20m -run TestMixedVersions ./test/nodes/

# An S3 server that others have written (Apache-2.0), a process of its own.
S3_SERVER := github.com/versity/versitygw/cmd/versitygw@v1.8.0

s3-test: build ## snapshots in an S3 server that others have written, which is built from its module (root, minutes)
	@GOBIN=$(CURDIR)/$(BUILD)/s3 $(GO) install $(S3_SERVER)
	@CORACLE_TEST_S3_SERVER=$(CURDIR)/$(BUILD)/s3/versitygw CORACLE_TEST_REQUIRE=root,embedded,s3-server $(E2E) -timeout 20m -run TestSnapshotsInS3 ./test/e2e/

# SHOTS: a folder for pictures of the pages.
console-test: build ## the console in Debian's chromium, by keys alone, against a real cluster (root, 64 MB of packages, minutes); SHOTS=folder, RUN=… of some
	@packaging/deps.sh build test console browser
	@packaging/console.sh --axe $(BUILD)
	@CORACLE_TEST_SHOTS='$(if $(SHOTS),$(abspath $(SHOTS)))' CORACLE_TEST_AXE=$(CURDIR)/$(BUILD)/axe.min.js CORACLE_TEST_REQUIRE=root,embedded,chromium,axe \
	  $(subst /report,/report -v,$(E2E)) -timeout 3h $(if $(RUN),-run '$(RUN)') ./test/console/

ingress-clients: build ## curl, nghttp, ngtcp2's client for HTTP/3, python-websockets and grpc-go through the ingress of a cluster (root, minutes)
	@packaging/deps.sh build test ingress
	@CORACLE_TEST_REQUIRE=root,embedded,http-clients $(E2E) -timeout 20m -run TestClientsOfEachProtocolAreServed ./test/ingress/

ingress-walk: ## each annotation and field of a tenant at its largest in the ingress proxy, beside another tenant's requests (root, a quarter of an hour)
	@CORACLE_TEST_WALK=1 CORACLE_TEST_REQUIRE=root $(GOTEST) -v -count=1 -timeout 60m -tags '$(TAGS)' -run '^TestLargestValuesOfATenantHarmNoOther$$' ./agent/ingress

ingress-soak: build ## a load through the ingress while routes, pods, versions and certificates change and a node's power is cut (root, a quarter of an hour)
	@INGRESS_MARK=older $(MAKE) --no-print-directory build OUT=bin/coracle-older && $(MAKE) --no-print-directory embedded
	@CORACLE_OLDER_BIN=$(CURDIR)/bin/coracle-older $(subst /report,/report -v,$(E2E)) -timeout 60m -run TestSoak ./test/ingress/

# Host firewalls, Docker and routing programs of Debian's, unpacked into a folder: nothing of the machine's is changed, and nothing is started on it.
foreign-test: build ## a cluster beside ufw, firewalld, Docker, FRR, systemd-networkd and NetworkManager as Debian has them, on machines of their own (root, a package server, minutes); RUN=… of some
	@packaging/foreign.sh $(ARCH) $(BUILD)/foreign
	@CORACLE_TEST_FOREIGN=$(CURDIR)/$(BUILD)/foreign/root CORACLE_TEST_REQUIRE=root,embedded,foreign-programs $(subst /report,/report -v,$(E2E)) -timeout 30m -run '$(or $(RUN),TestForeign)' ./test/nodes/

# SERVERS: on so many servers that run pods. PROCESSES: how many specs run side by side. SKIP: a regular expression of specs to leave out.
# LABELS: Ginkgo's filter of labels, for specs that are not of Conformance.
conformance: build ## upstream's conformance suite, built from its module, on a cluster of one node (root, an hour or two); SERVERS=3, FOCUS='…' of some specs
	@packaging/deps.sh build test conformance
	@CORACLE_BIN=$(CURDIR)/bin/coracle $(GO) run -tags '$(TAGS)' ./test/conformance -folder $(BUILD)/conformance -ldflags '$(STABLE_X)' \
	  $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)') $(if $(PROCESSES),-processes $(PROCESSES)) $(if $(SERVERS),-servers $(SERVERS)) \
	  $(if $(LABELS),-labels '$(LABELS)') $(if $(MEMORY),-memory)

# By hand, and slow: whatever a pod does takes ten times as long there.
guest-conformance: build ## upstream's specs of Services and NetworkPolicies on a node whose kernel has IPVS, in a second kernel (root, gcc, 140 MB of source, hours); FOCUS='…' of some, SERVERS=3 nodes
	@packaging/deps.sh build test conformance
	@folder=$$(packaging/guest-nftables.sh $(BUILD)/guest-nftables) && \
	  CORACLE_GUEST_NFTABLES=$$folder CORACLE_TEST_REQUIRE=root,embedded,user-mode-linux,guest-nftables CORACLE_BIN=$(CURDIR)/bin/coracle \
	  $(GO) run -tags '$(TAGS)' ./test/conformance -guest -folder $(BUILD)/conformance -ldflags '$(STABLE_X)' $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)') $(if $(SERVERS),-servers $(SERVERS))

# FOCUS: a regular expression of whole names of tests. SERVERS: on so many servers that run pods.
gateway-conformance: build ## upstream's conformance suite of the Gateway API, built from its module, on a cluster of one node (root, the Go module proxy, ten minutes); SERVERS=3, FOCUS='HTTPRouteWeight' of some tests
	@packaging/deps.sh build test
	@CORACLE_BIN=$(CURDIR)/bin/coracle $(GO) run -tags '$(TAGS)' ./test/gateway -folder $(BUILD)/gateway -version '$(VERSION)' $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SERVERS),-servers $(SERVERS))

install-test: build ## install, install again, uninstall; the host is as before (root)
	@$(E2E) -timeout 20m ./test/install/...

play: build ## a cluster from this tree in namespaces of its own, with a shell in it; CMD='kubectl get nodes' runs that instead (root)
	@CORACLE_BIN=$(CURDIR)/bin/coracle $(GO) run -tags '$(TAGS)' ./test/play $(if $(CMD),-c '$(subst ','\'',$(CMD))')

console: build ## coracle console on a cluster from this tree, in namespaces of its own; prints the link (root)
	@CORACLE_BIN=$(CURDIR)/bin/coracle $(GO) run -tags '$(TAGS)' ./test/play -console

# ONLY=install or ONLY=test: one of the two.
fresh-test: ## both commands of the README in a fresh Debian, with empty caches (root, over an hour)
	@packaging/deps.sh build test fresh
	@$(GO) run -tags '$(TAGS)' ./test/fresh $(if $(ONLY),-only $(ONLY))

COUNT ?= 30

# Each time in a process of its own: some things are a process' own, and -count would have them the same each time (packaging/again.sh).
flakes soak: export RAPID_SEED = 0
flakes: ## the unit tests of PKG=./folder in COUNT processes each with one, two and four processors, for what fails by chance; RUN=… of some
	@[ -n '$(PKG)' ] || { echo 'error: PKG says of which packages: make flakes PKG=./server RUN=Rotation' >&2; exit 2; }
	@for procs in 1 2 4; do CORACLE_TEST_RANDOM=1 GOMAXPROCS=$$procs $(GOTEST) -count=1 -exec '$(CURDIR)/packaging/again.sh $(COUNT)' -timeout 60m -tags '$(TAGS)' -ldflags '$(STABLE_X)' $(if $(RUN),-run '$(RUN)') $(PKG) || exit 1; done

DURATION ?= 75s

chaos: ## the store's promises on real servers under faults, for DURATION, from SEED (root)
	@CORACLE_CHAOS_DURATION=$(DURATION) CORACLE_CHAOS_SEED=$(SEED) $(GO) run ./test/report -v $(GO) test -json -vet=off -count=1 -timeout 24h -tags '$(TAGS) e2e' ./test/chaos

SEEDS ?= 200

# What make test does with the same seeds each time, with new ones. Each scenario of the store has a process of its own:
# one process keeps some MB of each seed, 22 GB after 2,000.
soak: ## the random tests of the store with SEEDS seeds, those of other packages with new ones, and half an hour of chaos (root, hours)
	@for test in $$($(GO) test -vet=off -list Scenario -tags '$(TAGS)' -ldflags '$(STABLE_X)' ./raftstore | grep ^Test | grep -v Scripts) \
	  $$(cd raftstore/testdata/scenarios && ls *.txt | sed 's/\(.*\)\.txt/TestScenarioScripts$$\/^\1/'); do \
	  CORACLE_TEST_SEEDS=$(SEEDS) $(GOTEST) -count=1 -timeout 6h -tags '$(TAGS)' -ldflags '$(STABLE_X)' -run "^$$test\$$" ./raftstore || exit 1; done
	@CORACLE_TEST_RANDOM=1 CORACLE_TEST_KILLS=each $(GOTEST) -count=1 -p 2 -timeout 60m -tags '$(TAGS)' -ldflags '$(STABLE_X)' ./raftstore/disk ./raftstore/mvcc ./raftstore/watch ./raftstore/etcdapi ./netpolicy ./proxy/... ./controllers/servicelb \
	  ./server/apiserver ./server/liveness ./server ./server/storefiles ./scheduler ./agent/balancer ./cni ./internal/...
	@$(MAKE) --no-print-directory chaos DURATION=30m

# Packages with concurrency of their own; everything would be all of Kubernetes once more.
RACE ?= ./raftstore/... ./netpolicy ./controllers/servicelb ./controllers/helmcharts ./controllers/ingress ./controllers/localpath ./agent/lbspeaker ./agent/balancer ./agent/images/... ./agent/ingress ./agent/tunnels ./server/localfailover ./server/ingress ./server/liveness ./server/resourcemetrics ./server/settings ./server/tunnels ./gossip/... ./ingress/dataplane ./ingress/gatewayapi ./console ./cni/... ./dns/... ./proxy/... ./internal/... ./cmd/coracle-helper/... ./cmd/coracle/tools/cleanup

race: ## go test -race of the packages with concurrency of their own, or of RACE; RUN=… of some tests (needs gcc)
	@CGO_ENABLED=1 $(GO) run ./test/report $(GO) test -json -race -vet=off -p 4 -timeout 60m -tags '$(TAGS)' -ldflags '$(STABLE_X)' $(if $(RUN),-run '$(RUN)') $(RACE)

# They are a module of their own: what only upstream's programs need is not in go.mod.
upstream: ## upstream's programs for bench and bench-ha, built from their modules into build/upstream (gcc, the Go module proxy, minutes)
	@GO='$(GO)' test/bench/upstream/build.sh $(BUILD)/upstream

# QUICK=1: a tenth of each measurement, to try a change. BENCH=TestBench: the table of the README alone.
bench: build upstream ## footprint, start-up, pod start and write rates, beside upstream (root, three hours); see also bench-store
	@CORACLE_BENCH_QUICK='$(QUICK)' CORACLE_BIN=$(CURDIR)/bin/coracle CORACLE_UPSTREAM=$(CURDIR)/$(BUILD)/upstream test/bench/run.sh

bench-ha: build upstream ## failover times, writes through the API, beside upstream; footprint of agents, of servers that do not lead, and of one that leads up to 1,000 simulated nodes (root, three hours); RUN=… of some
	@CORACLE_BIN=$(CURDIR)/bin/coracle CORACLE_UPSTREAM=$(CURDIR)/$(BUILD)/upstream $(GO) test -vet=off -count=1 -v -timeout 6h -tags '$(TAGS) bench' $(if $(RUN),-run '$(RUN)') ./test/ha

# QUICK=1: two minutes. RUN=… of: TestPods, TestBetween, TestServices, TestPolicies.
bench-net: embedded ## a pod's network, ways between pods, Services beside upstream's kube-proxy, policies beside none: docs/benchmarks.md (root, half an hour)
	@CORACLE_BENCH_QUICK='$(QUICK)' CORACLE_TEST_REQUIRE=root,embedded $(GO) test -vet=off -count=1 -timeout 60m -tags '$(TAGS) bench' -ldflags '-s -w $(STABLE_X)' \
	  -v $(if $(RUN),-run '$(RUN)') ./test/benchnet

# QUICK=1: a minute. Programs of others are unpacked into a folder and see nothing else of the machine.
bench-ingress: ## the ingress proxy beside Debian's nginx, HAProxy and Caddy: docs/benchmarks.md (root, a package server, ten minutes)
	@packaging/debs.sh $(ARCH) $(BUILD)/bench-ingress nginx-light haproxy caddy wrk nghttp2-client
	@CORACLE_BENCH_QUICK='$(QUICK)' CORACLE_BENCH_INGRESS=$(CURDIR)/$(BUILD)/bench-ingress/root CORACLE_TEST_REQUIRE=root,foreign-programs \
	  $(GO) test -vet=off -count=1 -timeout 60m -tags '$(TAGS) bench' -ldflags '-s -w $(STABLE_X)' -v -run '^TestMachine$$|^TestIngress$$' ./test/benchnet

CUTS ?= 30
ROUNDS ?= 5

# Of stores in second kernels, or of whole nodes with pods on this one.
STORE_CUTS = CORACLE_TEST_RANDOM=1 CORACLE_POWERCUTS=$(CUTS) CORACLE_POWERCUT_ROUNDS=$(ROUNDS) $(GO) test -vet=off -count=1 -v -timeout 0 -tags '$(TAGS)' ./test/powercut/
NODE_CUTS = CORACLE_TEST_RANDOM=1 CORACLE_NODE_CUTS=$(NODES) CORACLE_TEST_REQUIRE=root,embedded,loop-device,fuse $(subst /report,/report -v,$(E2E)) -timeout 0 $(if $(RUN),-run '$(RUN)') ./test/nodepower/

powercut: $(if $(NODES),build) ## cut the power of a store's machine CUTS times, and of a cluster's in ROUNDS (user-mode-linux); NODES=10: of a node with pods so many times (root, /dev/fuse)
	$(if $(NODES),$(NODE_CUTS),$(STORE_CUTS))

# Upstream's program in nftables mode, as a process of its own. Each difference is printed, and one that is not listed fails.
proxy-test: embedded ## the same cases of Services with our nftables back end and with upstream's kube-proxy, which is built from its module (root, the Go module proxy, minutes)
	@$(GOBUILD) -ldflags '-s -w $(STABLE_X)' -o $(BUILD)/kube-proxy k8s.io/kubernetes/cmd/kube-proxy
	@CORACLE_KUBE_PROXY=$(CURDIR)/$(BUILD)/kube-proxy CORACLE_TEST_REQUIRE=root,embedded,kube-proxy $(subst /report,/report -v,$(GOTEST)) -count=1 -timeout 30m -tags '$(TAGS)' -ldflags '$(STABLE_X)' \
	  -run '$(or $(RUN),TestDifferencesBelongToCases|TestServiceCases/^(nftables|kube-proxy)$$)' ./proxy

# Two guests side by side: each has one processor.
guest-test: embedded ## Services and NetworkPolicies on IPVS, and the kernel's WireGuard, in a second kernel that has nftables too (root, gcc, 140 MB of source)
	@folder=$$(packaging/guest-nftables.sh $(BUILD)/guest-nftables) && \
	  CORACLE_GUEST_NFTABLES=$$folder CORACLE_TEST_REQUIRE=root,embedded,user-mode-linux,guest-nftables \
	  $(GOTEST) -count=1 -p 2 -timeout 85m -tags '$(TAGS)' -ldflags '$(STABLE_X)' -run 'TestService.*/ipvs|TestKernelsWireGuard' ./proxy ./netpolicy ./cni

# The folders come from scripts that do nothing the second time.
guest-nodes: build ## whole nodes with real pods whose kernel has IPVS and NFS, in second kernels (root, gcc, 140 MB of source, slow)
	@nftables=$$(packaging/guest-nftables.sh $(BUILD)/guest-nftables) && nfs=$$(packaging/guest-nfs.sh $(BUILD)/guest-nfs) && \
	  CORACLE_GUEST_NFTABLES=$$nftables CORACLE_GUEST_NFS=$$nfs CORACLE_TEST_REQUIRE=root,embedded,user-mode-linux,guest-nftables,guest-nfs \
	  $(subst /report,/report -v,$(E2E)) -timeout 2h ./test/guests

arm64-test: ## a cluster with pods on an emulated machine with an arm64 processor (root, a package server, a quarter of an hour and the time to build for arm64)
	@packaging/deps.sh build cross arm64
	@packaging/arm64-guest.sh $(BUILD)/arm64-guest
	@$(MAKE) build ARCH=arm64 OUT=bin/coracle-arm64
	@CORACLE_ARM64_GUEST=$(CURDIR)/$(BUILD)/arm64-guest CORACLE_ARM64_BIN=$(CURDIR)/bin/coracle-arm64 CORACLE_TEST_REQUIRE=root,arm64-guest \
	  $(subst /report,/report -v,$(GOTEST)) -count=1 -timeout 2h -tags '$(TAGS) e2e' ./test/arm64

# ARGS: flags of test/storebench, such as -only 'rates|disk', -voters 1.
bench-store: ## the store beside etcd built from its module; QUICK=1: two minutes; DIR=… on another disk
	@mkdir -p $(BUILD)
	@$(GOBUILD) -o $(BUILD)/etcd go.etcd.io/etcd/server/v3
	@$(GOBUILD) -o $(BUILD)/ ./test/storenode ./test/storebench
	$(BUILD)/storebench -etcd $(BUILD)/etcd -storenode $(BUILD)/storenode -dir $(or $(DIR),$(BUILD)/bench-store) -json $(BUILD)/bench-store.json $(if $(QUICK),-quick) $(ARGS)

fuzz: ## each fuzz test for FUZZTIME
	@set -e; for f in $$(git grep -l '^func Fuzz' -- '*_test.go'); do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$f"); do \
	    echo "$$name in $$(dirname "$$f")"; (cd "$$(dirname "$$f")" && $(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) .); \
	  done; done

verify: ## what has to be clean before a merge
	@packaging/deps.sh build lint console
	@packaging/steps.sh subjects fmt shellcheck tidy imports docs-check console-check lint cross

subjects: ## the subjects of new commits have the form of the others, and at most 72 columns
	@packaging/subjects.sh

fmt: ## every file is gofmt'ed
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs $(dir $(GO))gofmt -l); [ -z "$$bad" ] || { echo "not gofmt'ed:"; echo "$$bad"; exit 1; }

vet: ## go vet ./...; golangci-lint does the same and more
	$(GO) vet -tags '$(TAGS) e2e bench' ./...

lint: ## golangci-lint at its pinned version
	$(GO) run $(GOLANGCI) run --allow-parallel-runners --build-tags '$(subst $() $(),$(comma),$(TAGS) e2e bench)' ./...
comma := ,

imports: ## imports, comments, widths, words, methods and architecture.md are as the tests of this folder allow
	$(GO) test -vet=off -tags '$(TAGS)' .

console-check: ## the types and the format of the console's pages, and what they import of each other
	@GO="$(GO)" packaging/console.sh --check $(BUILD)

docs: ## write the generated pages
	$(GO) run -tags '$(TAGS)' ./cmd/coracle/gendocs docs/configuration.md

docs-check: docs ## the generated pages are up to date
	@git diff --exit-code --stat -- docs || { echo "generated pages differ from what is committed: commit what make docs wrote"; exit 1; }

tidy: ## go.mod and go.sum hold what is needed and nothing else, also those of upstream's programs
	@for module in . test/bench/upstream; do $(GO) -C $$module mod tidy -diff || { echo "$$module/go.mod or go.sum is not tidy: run go mod tidy there"; exit 1; }; done

shellcheck: ## the shell scripts
	shellcheck -x $(SHELL_SCRIPTS)

cross: ## everything has the right types for the other processor; make release compiles it
	@$(GO) run ./packaging/typecheck -arch $(if $(filter arm64,$(ARCH)),amd64,arm64) -tags '$(TAGS)' ./...

clean: ## remove what the build wrote, fetched parts included
	rm -rf bin dist $(BUILD)
	-git worktree prune
	find internal/embedded/files -mindepth 2 ! -name README -delete
