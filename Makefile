# The front door. Each target is one line of cargo, xtask or a script; what they do is in there.
SHELL := /bin/bash
export PATH := $(shell bootstrap/toolchain-path)$(PATH)
BIN := target/bin

.DEFAULT_GOAL := help
.PHONY: help lab test cluster cluster-down image bench build clean

help: ## what can be typed
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: build ## the main job: examples/shop in real network namespaces, who reaches whom and why
	@$(BIN)/palisade lab examples/shop --expect examples/shop/expect.yaml

test: ## everything that must hold, as CI runs it
	@bootstrap/install test && cargo xtask test

cluster: image ## a real Kubernetes cluster of two nodes with Palisade in it
	@tests/e2e/kind/up

cluster-down: ## remove that cluster, all of it
	@tests/e2e/kind/down

image: build ## target/image/palisade.tar, the container image
	@cargo xtask image

bench: build ## ratios to a direct veth pair and to plain kernel routing, into target/bench.json
	@cargo run --release --quiet --package palisade-bench

build: ## the three static binaries, below target/bin
	@bootstrap/install build && cargo xtask build

clean: ## forget all that was built
	@rm -rf target
