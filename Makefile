# `make demo` runs the main job, `make test` everything that must hold. Each sets up what it needs under .venv and
# .cache, both ignored by git; deleting them starts from nothing.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[torch,test]'
	@touch $@

.PHONY: demo
demo: $(VENV)/run.stamp ## Run the main job: what a hybrid policy costs, layer by layer
	$(BIN)/kvquant analyze --layers 0-10:q8_0,11-31:q4_0

.PHONY: lint
lint: $(VENV)/test.stamp ## Style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

# What the tests hold the package against: ggml's own quantizers, the patched programs, and a stock server of the same
# tree. Each is kept under .cache by a key of its sources and flags, so that only the first run compiles.
.PHONY: test
test: lint ## Everything that must hold
	@set -e; \
	source=$$($(BIN)/kvquant llama fetch); \
	$(BIN)/python tools/build_libggml.py --source "$$source" > /dev/null; \
	KVQUANT_LLAMA_BIN=$$($(BIN)/kvquant llama build --jobs $(JOBS)); \
	KVQUANT_STOCK_BIN=$$($(BIN)/kvquant llama build --jobs $(JOBS) --stock --program llama-server); \
	export KVQUANT_LLAMA_BIN KVQUANT_STOCK_BIN; \
	$(BIN)/pytest --numprocesses $(JOBS)
