# The front door. Each target is one line of cargo, xtask or a script; what they do is in there.
SHELL := /bin/bash
# Read anew for every target: the first one may just have installed the compiler.
export PATH = $(shell bootstrap/toolchain-path)$(ORIGINAL_PATH)
ORIGINAL_PATH := $(shell printf '%s' "$$PATH")
BIN := target/bin

.DEFAULT_GOAL := help
.PHONY: help lab test kernels soak cluster cluster-down image bench build clean tools test-tools

help: ## what can be typed
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: build ## the main job: examples/shop in real network namespaces, who reaches whom and why
	@$(BIN)/palisade lab examples/shop --expect examples/shop/expect/reach.yaml

test: test-tools ## everything that must hold, as CI runs it; SUITES="unit packet" picks some
	@cargo xtask test $(SUITES)

kernels: test-tools ## packet and namespace tests on other kernels, in QEMU; KERNELS="5.10 6.1" and SUITES="packet" pick some
	@bootstrap/install kernels
	@cargo xtask vm $(KERNELS:%=--kernel %) $(SUITES)

soak: test-tools ## the rows against the oracle on ten million generated flows
	@PALISADE_MODELS=150000 cargo test --release --quiet --package palisade-policy --test rules -- --nocapture compiler_against_oracle

cluster: image ## a real Kubernetes cluster with Palisade in it; NODES=3 MODE=auto|native|vxlan FAMILY=ipv4|ipv6|dual
	@NODES=$(NODES) MODE=$(MODE) FAMILY=$(FAMILY) tests/e2e/kind/up

cluster-down: ## remove that cluster, all of it
	@tests/e2e/kind/down

image: build ## target/image/palisade.tar, the container image
	@cargo xtask image

bench: test-tools ## ratios to a direct veth pair, to plain kernel routing and to kube-proxy, into target/bench.json
	@cargo build --release --quiet --package palisade-agent --package palisade-cni
	@proxy=$$(tests/e2e/kind/build kube-proxy) && cargo run --release --quiet --package palisade-bench -- --kube-proxy "$$proxy"

build: tools ## the three static binaries, in target/bin
	@cargo xtask build

tools:
	@bootstrap/install build

test-tools:
	@bootstrap/install test

clean: ## forget all that was built
	@rm -rf target
