# Everything a checkout needs. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev repro test long soak ui check format lock clean bench bench-setup bench-lock bench-jax

# The first interpreter that Shardline supports; PYTHON=/path/to/python overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && { echo $$p; break; }; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
RECIPE ?= python_lm

export PATH := $(CURDIR)/$(BIN):$(PATH)

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: RECIPE=python_lm|digits|tabular|yours, PYTHON=python3.12, ARGS='...'"

setup: $(STAMP)  ## what the main job needs, in .venv, from requirements.lock
setup-dev: $(DEV)  ## … and what checks and tests need

%/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "Shardline needs Python 3.11, 3.12 or 3.13; none was found. Set PYTHON=/path/to/python." >&2; exit 1; }
	$(PYTHON) -m venv $*

# By uv, which is told pip's settings, since it reads none; by pip where uv isn't to be had or fails: docs/decisions/0053.
PIP := -m pip --disable-pip-version-check
settings = $(1)/bin/python $(PIP) config list | sort -r | sed -nE \
	-e 's/^[^=]*\.index-url=/UV_INDEX_URL=/p' -e 's/^[^=]*\.extra-index-url=/UV_EXTRA_INDEX_URL=/p' \
	-e 's/^[^=]*\.find-links=/UV_FIND_LINKS=/p' -e 's/^[^=]*\.cert=/SSL_CERT_FILE=/p'
install = set -a; eval "$$($(settings))"; set +a; \
	[ -x $(1)/bin/uv ] || $(1)/bin/python $(PIP) install --quiet --constraint requirements.lock uv; \
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python --index-strategy unsafe-best-match $(2) || \
	$(1)/bin/python $(PIP) install --quiet --progress-bar off $(2)

$(STAMP): pyproject.toml requirements.lock | $(BIN)/python
	@$(call install,$(VENV),--constraint requirements.lock --editable .)
	@touch $@

$(DEV): $(STAMP)
	@$(call install,$(VENV),--constraint requirements.lock --editable '.[dev]')
	@touch $@

repro: setup     ## raw data → tracked, evaluated, registered model (RECIPE=name; only what is stale)
	@$(BIN)/shardline repro --recipe $(RECIPE) $(ARGS)

test: setup-dev  ## the test suite (ARGS='-k name' for a part)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not long and not soak" $(ARGS)

long: setup-dev  ## the rest of it, which CI runs as well: groups of ranks, other trainers, what takes ten seconds and more
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m long $(ARGS)

soak: setup-dev  ## the tests that take minutes each
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m soak $(ARGS)

ui: setup        ## MLflow UI over the project's runs, on http://127.0.0.1:5000
	@$(BIN)/shardline ui $(ARGS)

check: setup-dev  ## format, lint, types, import contracts: what CI asks before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

format: setup-dev  ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(BIN)/python  ## resolve requirements.lock anew for Python 3.11 to 3.13
	@$(BIN)/python $(PIP) install --quiet uv
	$(BIN)/uv pip compile --upgrade --universal --fork-strategy fewest --python-version 3.11 --extra dev --no-annotate \
		--no-header --quiet pyproject.toml --output-file requirements.lock

# The peers of the benchmarks, in an environment of their own.
PEERS  := .venv-peers
PEERED := $(PEERS)/.installed

bench-setup: $(PEERED)  ## the environment of the benchmarks' peers in .venv-peers, from benchmarks/peers.lock

$(PEERED): benchmarks/peers.in benchmarks/peers.lock $(wildcard benchmarks/standins/*/*.toml) | $(PEERS)/bin/python
	@$(call install,$(PEERS),--constraint benchmarks/peers.lock --requirement benchmarks/peers.in ./benchmarks/standins/torchvision)
	rm -rf benchmarks/standins/torchvision/build benchmarks/standins/torchvision/*.egg-info
	@touch $@

bench-lock: $(BIN)/python  ## resolve benchmarks/peers.lock anew
	@$(BIN)/python $(PIP) install --quiet uv
	$(BIN)/uv pip compile --upgrade --universal --fork-strategy fewest --python-version 3.11 --no-annotate --no-header --quiet \
		--no-emit-package torchvision benchmarks/peers.in --output-file benchmarks/peers.lock

bench-jax: bench-setup  ## the example of a training loop in JAX, in the peers' environment
	@$(PEERS)/bin/python -m benchmarks.examples.with_jax

bench: setup-dev bench-setup  ## every benchmark, its results, plots and docs/benchmarks.md (ARGS=--quick for a look)
	@$(BIN)/python -m benchmarks all --save $(ARGS)

clean:           ## remove the environment; data, models and runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache shardline.egg-info
