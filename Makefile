# `make help` says what there is. Everything that a target needs is set up by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# bcc comes from the distribution, for the distribution's Python: see pyproject.toml.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# More arguments for pytest or latencyprobe, e.g. make test-unit ARGS='-k histogram -x'
ARGS ?=

export PYTHON
# pip neither asks nor advertises.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

PROTOS := $(wildcard proto/latencyprobe/v1/*.proto proto/io/prometheus/client/*.proto)
STUBS := latencyprobe/protocol/v1/node_agent_pb2.py latencyprobe/exposition/metrics_pb2.py
# tools/setup-go may have put a Go into .venv; it goes before an older one of the machine.
CLUSTER_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"

##@ Use

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: system-packages $(STUBS) $(VENV)/.project ## Install what is missing: system packages, .venv, stubs

.PHONY: run
run: setup ## Set up, then measure a small workload on this machine (needs root)
	$(BIN)/latencyprobe demo $(ARGS)

##@ Test

.PHONY: test
test: test-setup ## Run what must hold before a landing; LATENCYPROBE_SKIP=cluster,live leaves tiers out
	$(CLUSTER_PATH) $(BIN)/python -m tests.run_tiers

.PHONY: test-all
test-all: test-setup ## Run all there is: thorough tests, all kernels, benchmarks (hours)
	LATENCYPROBE_KERNELS=$${LATENCYPROBE_KERNELS:-all} $(CLUSTER_PATH) \
		$(BIN)/python -m tests.run_tiers --all

.PHONY: test-unit
test-unit: setup ## Run tests/unit: no privileges
	$(BIN)/python -m pytest tests/unit $(ARGS)

.PHONY: test-chart
test-chart: setup-go ## Run tests/chart: the Helm chart, without a cluster
	$(CLUSTER_PATH) $(BIN)/python -m pytest tests/chart $(ARGS)

.PHONY: test-live
test-live: setup-go ## Run tests/live: real eBPF programs (needs root)
	$(CLUSTER_PATH) $(BIN)/python -m pytest tests/live $(ARGS)

.PHONY: test-cluster
test-cluster: setup-cluster ## Run tests/cluster: a real Kubernetes (needs root)
	$(CLUSTER_PATH) $(BIN)/python -m pytest tests/cluster $(ARGS)

.PHONY: test-kernels
test-kernels: setup ## Run tests/kernels under all kernels, or LATENCYPROBE_KERNELS=5.10,7
	@tools/setup-system kernels
	LATENCYPROBE_KERNELS=$${LATENCYPROBE_KERNELS:-all} $(BIN)/python -m pytest tests/kernels $(ARGS)

.PHONY: lint
lint: setup ## Run tests/lint: style, formatting, types, layers, links
	$(BIN)/python -m pytest tests/lint $(ARGS)

.PHONY: bench
bench: setup ## Measure what measuring costs (needs root)
	$(BIN)/python -m bench $(ARGS)

##@ Deploy

# amd64 or arm64; this machine's if empty. Any machine builds both.
ARCHITECTURE ?=

.PHONY: images
images: setup ## Build the images as OCI archives in dist/, without a registry: [ARCHITECTURE=arm64]
	@tools/setup-system images
	@$(BIN)/python -m tools.images build $(if $(ARCHITECTURE),--architecture $(ARCHITECTURE)) $(ARGS)

.PHONY: sign
sign: setup ## Sign the images in dist/ with cosign: KEY=file BUILDER=uri
	@tools/sign-release "$(KEY)" "$(BUILDER)" dist $(ARGS)

.PHONY: manifests
manifests: setup-go ## Render manifests/ and the chart's README from charts/latencyprobe
	@$(CLUSTER_PATH) $(BIN)/python -m tools.manifests

.PHONY: dashboards
dashboards: setup ## Write the Grafana boards of the chart from tools/dashboards
	@$(BIN)/python -m tools.dashboards

##@ Cluster

.PHONY: cluster
cluster: setup-cluster ## Start a Kubernetes on this machine (needs root); NODES=2 for two nodes
	$(CLUSTER_PATH) $(BIN)/python -m devcluster up --nodes=$(or $(NODES),1)

.PHONY: cluster-images
cluster-images: setup-cluster ## Build the images, give them to its nodes, and have a Helm
	$(CLUSTER_PATH) $(BIN)/python -m devcluster load

.PHONY: cluster-down
cluster-down: setup ## Stop it and remove what it left
	$(BIN)/python -m devcluster down

##@ Change

.PHONY: format
format: setup ## Format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	git ls-files -z -- '*.c' '*.h' | xargs -0 $(BIN)/clang-format -i

.PHONY: editor
editor: setup ## Write build/compile_commands.json, with which clangd opens bpf/ in an editor
	@$(BIN)/python -m tools.editor

.PHONY: stubs
stubs: $(VENV)/.packages ## Generate the stubs of proto/ again
	$(BIN)/python setup.py --quiet stubs

.PHONY: lock
lock: $(VENV)/.venv ## Pin the newest packages that pyproject.toml allows
	$(BIN)/pip install --quiet --require-hashes -r requirements-uv.lock
	@lock() { $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command 'make lock' "$$@"; } && \
	lock --universal --group dev pyproject.toml -o requirements.lock && \
	lock --universal --no-deps --group cluster -o requirements-cluster.lock && \
	lock --universal --no-deps --group lock -o requirements-uv.lock && \
	lock --universal --constraint requirements.lock --group build -o requirements-build.lock && \
	lock --universal --constraint requirements.lock --group operator-image \
		-o operator/requirements.lock && \
	lock --universal --constraint requirements.lock --group agent-image \
		-o node_agent/requirements.lock

.PHONY: clean
clean: ## Remove everything that was made, .venv included
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache $(wildcard $(STUBS:.py=)*)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the set-up, step by step

.PHONY: test-setup
test-setup: setup try-setup-go try-setup-cluster try-setup-kernels

.PHONY: system-packages
system-packages:
	@tools/setup-system run test

.PHONY: setup-go
setup-go: setup
	@tools/setup-go $(VENV)

.PHONY: setup-cluster
setup-cluster: setup-go
	@tools/setup-system cluster images

# Where that fails, the other tiers still run, and those that need it fail with what they lack.
.PHONY: try-setup-go
try-setup-go: setup
	@tools/setup-go $(VENV) || true

.PHONY: try-setup-cluster
try-setup-cluster: setup
ifeq ($(findstring cluster,$(LATENCYPROBE_SKIP)),)
	@tools/setup-system cluster images || true
endif

.PHONY: try-setup-kernels
try-setup-kernels: setup
ifeq ($(findstring kernels,$(LATENCYPROBE_SKIP)),)
	@tools/setup-system kernels || true
endif

$(VENV)/.venv: | system-packages
	@echo "setup: making $(VENV) from $(PYTHON)"
	@$(PYTHON) -m venv --clear --system-site-packages $(VENV)
	@touch $@

$(VENV)/.packages: $(VENV)/.venv requirements.lock
	@echo "setup: installing the packages of requirements.lock"
	@$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@touch $@

$(STUBS) &: $(PROTOS) setup.py $(VENV)/.packages
	$(BIN)/python setup.py --quiet stubs

# Editable: the code in the checkout is what runs. It is installed again when its packages, entry
# points or dependencies may have changed.
$(VENV)/.project: pyproject.toml setup.py $(VENV)/.packages $(STUBS)
	@echo "setup: installing latencyprobe from this checkout"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
