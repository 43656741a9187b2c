# qos-agent. `make` alone lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOFLAGS_BUILD = -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# The chart's appVersion, so that the chart finds what `make image` has made; IMAGE_TAG=... for another.
IMAGE_TAG ?= $(shell sed -n 's/^appVersion: *"\(.*\)"/\1/p' deploy/helm/qos-agent/Chart.yaml)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-unit test-kernel test-vm test-rig rig deps generate lint bench-load bench-quick bench-interference bench-knobs bench-why bench-overhead bench-reaction bench-tune bench-rdt bench-replay fuzz clean
.PHONY: image e2e

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/qos-agent, static
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o bin/qos-agent ./cmd/qos-agent

image: ## dist/qos-agent.tar, an OCI archive for amd64 and arm64, and its bills of materials; no container engine needed
	cd deploy && SOURCE_DATE_EPOCH=$(shell git log -1 --format=%ct 2>/dev/null || echo 0) go run -mod=mod ./image/mkimage \
		-version $(VERSION) -name docker.io/library/qos-agent:$(IMAGE_TAG)

demo: build ## an online service wrecked by offline work and brought back, here and now (root, about a minute)
	go build -o bin/demo ./demo
	QOS_AGENT_BIN=$(CURDIR)/bin/qos-agent bin/demo

test: deps ## all tests: unit with -race, this kernel, containerd, Debian's kernels in QEMU, RDT in an emulated machine
	go run ./test/runner

test-unit: ## only tests of pure Go
	go run ./test/runner -layers unit

test-kernel: ## only tests on this machine's kernel and containerd (root)
	go run ./test/runner -layers kernel

e2e: deps ## the chart's pod in a private containerd beside pods under load, scraped by a real Prometheus (root, 2 minutes)
	cd deploy && go test -mod=mod -count=1 -v ./e2e

test-vm: ## only tests on Debian's 6.1 and 6.12 in QEMU (no root, no KVM)
	go run ./test/runner -layers vm

test-rig: rig ## only tests on a machine with RDT and a PMU, emulated (no root, no KVM)
	go run ./test/runner -layers rig

.PHONY: test-apiserver
test-apiserver: ## chart, kustomize, examples and --kube-events against a real kube-apiserver, with kubectl and helm (no root; compiles them first)
	cd test/apiserver && go test -mod=mod -count=1 -timeout=60m -v .

rig: ## build that machine (a patched QEMU, about 2 minutes) into the cache, if it is not there
	go run ./test/rig/build

deps: ## install the Debian packages that tests and benches need, if any is missing
	./test/deps.sh

generate: ## BPF objects, generated references, dashboards, kustomize base
	go generate ./...
	go test ./internal/server -run TestReference -update
	go test ./cmd/qos-agent -run TestFlagsReference -update
	cd deploy && go generate ./... && go test -mod=mod ./chart -update

lint: ## gofmt and vet
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt:"; echo "$$out"; exit 1; fi
	go vet ./...
	CGO_ENABLED=0 go vet -tags vmguest ./test/vm/...
	cd deploy && go vet -mod=mod ./...

bench-load: ## what the load generator itself adds to latency
	go run ./bench/load/loadgen -self-check

bench-quick: ## what offline work does to online services, coarsely, under each protection (root, under 5 minutes)
	go run ./bench/interference quick

bench-interference: ## the same for every service, load and kind of work; MINUTES=60 (root)
	go run ./bench/interference full --minutes $(or $(MINUTES),60)

.PHONY: bench-again
bench-again: ## the pairs of bench-interference that were above the target, measured again (root, 4 minutes)
	go run ./bench/interference again

bench-knobs: ## each rung of the ladder alone, for each kind of offline work (root, 15 minutes)
	go run ./bench/interference knobs

bench-why: ## what work does to a service and by which way it gets through the posture, beside bpftrace (root, 6 minutes)
	go run ./bench/interference why
	go run ./bench/interference causes

.PHONY: bench-preempt
bench-preempt: ## what a writer of files does under each of the kernel's models of preemption, in an emulated machine (root, 3 minutes)
	go run ./bench/interference preempt

bench-overhead: ## cost of the BPF programs beside runqlat's, and of the daemon by containers and interval (root, 5 minutes)
	go run ./bench/overhead

bench-reaction: ## from a surge, a burst and the kernel's event to the agent's write, beside koordlet's rule (root, 12 minutes)
	go run ./bench/reaction

bench-replay: ## bytes, cost and speed of recording and replay of 150 containers, and the model's hold-out error on a real node (root for that; under 5 minutes)
	go run ./bench/replay $(if $(TRACE),--trace $(TRACE))

bench-rdt: ## cache and bandwidth in a closed loop, on the emulated machine with RDT (20 minutes)
	go run ./bench/rdt

fuzz: ## look for files that break the reader of recordings (FUZZTIME=150s for each of two ways)
	go test ./internal/trace -run xxx -fuzz 'FuzzReader$$' -fuzztime $(or $(FUZZTIME),150s) -fuzzminimizetime 1s
	go test ./internal/trace -run xxx -fuzz 'FuzzSteps$$' -fuzztime $(or $(FUZZTIME),150s) -fuzzminimizetime 1s

bench-tune: ## record a bad policy beside nginx and xz, tune on the recordings, run both in turn (root, 5 minutes)
	go run ./bench/tune

.PHONY: bench-watched
bench-watched: ## what it costs the daemon to be looked at, by page and top (root, 3 minutes)
	go run ./bench/watched

clean: ## remove what was built
	rm -rf bin dist demo/out
