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
	$(BIN)/kvquant analyze --policy 0-10:q8_0,11-31:q4_0

.PHONY: lint
lint: $(VENV)/test.stamp ## Style, layout and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# Rooms whose tests start no program; fewer examples than in `make test`, and nothing that needs llama.cpp or torch.
FAST := tests/analysis tests/formats tests/memory tests/model tests/policy tests/search tests/reference \
	tests/test_architecture.py tests/test_documents.py tests/test_files.py tests/test_units.py

.PHONY: check
check: lint ## The fast lane: lint, types, unit and property tests
	HYPOTHESIS_PROFILE=fast $(BIN)/pytest --quiet --numprocesses $(JOBS) $(FAST)

.PHONY: site
site: $(VENV)/test.stamp ## Build the documentation into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file tools/docs/mkdocs.yml

# What the tests hold the package against: ggml's own quantizers, the patched programs, and a stock server of the same
# tree. Each is kept under .cache by a key of its sources and flags, so that only the first run compiles. Pages are
# looked at in a headless Chromium, fetched where none is installed; where it cannot be, those tests are skipped.
.PHONY: test
test: lint ## Everything that must hold
	@set -e; \
	source=$$($(BIN)/kvquant llama fetch); \
	$(BIN)/python tools/build_libggml.py --source "$$source" > /dev/null; \
	KVQUANT_LLAMA_BIN=$$($(BIN)/kvquant llama build --jobs $(JOBS)); \
	$(BIN)/kvquant llama build --jobs $(JOBS) --program llama-kv-layers-memory > /dev/null; \
	KVQUANT_STOCK_BIN=$$($(BIN)/kvquant llama build --jobs $(JOBS) --stock --program llama-server); \
	KVQUANT_LLAMA_SOURCE=$$source; \
	KVQUANT_CHROMIUM=$$($(BIN)/python tools/get_chromium.py || true); \
	export KVQUANT_LLAMA_BIN KVQUANT_STOCK_BIN KVQUANT_LLAMA_SOURCE KVQUANT_CHROMIUM; \
	$(BIN)/pytest --numprocesses $(JOBS)

# Targets that compile for long: each writes its record under benchmarks/results, which docs/ and tests read.
.PHONY: llama
llama: $(VENV)/run.stamp ## Fetch, patch and build llama.cpp for this machine
	$(BIN)/kvquant llama build --jobs $(JOBS)

.PHONY: export
export: $(VENV)/run.stamp ## Write the patches as diffs for the pinned tree
	$(BIN)/kvquant patch export --source "$$($(BIN)/kvquant llama fetch)" --out patches/llama.cpp --surroundings

.PHONY: walk
walk: $(VENV)/run.stamp ## Hold the patches to the range of llama.cpp tags in PIN; builds and runs five of them
	$(BIN)/python tools/walk_tags.py --jobs $(JOBS) --out benchmarks/results/patch-range.json \
		$(foreach tag,b9093 b9637 b10142 b10724 b11434,--compile $(tag) --build $(tag))

.PHONY: archs
archs: $(VENV)/run.stamp ## Hold every architecture upstream's tests can make to its results without a policy or transform
	bin=$$($(BIN)/kvquant llama build --jobs $(JOBS) --program llama-kv-layers-archs \
		--program llama-kv-transform-archs) && \
		$$bin/llama-kv-layers-archs > benchmarks/results/kv-layers-archs.txt && \
		$$bin/llama-kv-transform-archs > benchmarks/results/kv-transform-archs.txt

# What K, V and their attention go through; `make backend-ops OPS=` tries every operation there is, for hours.
OPS := FLASH_ATTN_EXT,SET_ROWS,CPY,ROPE,GET_ROWS,SOFT_MAX

.PHONY: backend-ops
backend-ops: $(VENV)/run.stamp ## Hold the patched tree's CPU backend to upstream's own test of its operations
	bin=$$($(BIN)/kvquant llama build --jobs $(JOBS) --program test-backend-ops --cmake-arg -DLLAMA_BUILD_TESTS=ON) && \
		$(BIN)/python tools/backend_ops.py --bin "$$bin" --op "$(OPS)" --out benchmarks/results/backend-ops.json

.PHONY: memory
memory: $(VENV)/test.stamp ## Hold the memory rules of every architecture to what llama.cpp allocates for headers alone
	bin=$$($(BIN)/kvquant llama build --jobs $(JOBS) --program llama-kv-layers-memory) && \
		PYTHONPATH=tests $(BIN)/python -m memory.headers $$bin/llama-kv-layers-memory benchmarks/results/kv-memory.json

.PHONY: fuzz
fuzz: $(VENV)/test.stamp ## 100,000 mutated model files and policies: no traceback, no advice that cannot be followed
	PYTHONPATH=tests $(BIN)/python -m model.fuzz 100000

.PHONY: rk3588
rk3588: $(VENV)/run.stamp ## Cross-build for the RK3588, check the instructions, run it under qemu
	tools/build_rk.sh --jobs $(JOBS) --prefix build/rk3588
	$(BIN)/python tools/prove_rk.py --native "$$($(BIN)/kvquant llama build --jobs $(JOBS))" --prefix build/rk3588 \
		--out benchmarks/results/rk3588.json

.PHONY: standard
standard: $(VENV)/run.stamp ## Validate six policies on the reference model; run again to resume
	$(BIN)/kvquant validate --llama-bin "$$($(BIN)/kvquant llama build --jobs $(JOBS))" --threads 1 --policy f16 \
		--policy q8_0 --policy q4_0 --policy hybrid --policy k8v4 --policy 0-10:q4_0,11-31:q8_0 --out runs/standard
	$(BIN)/kvquant report runs/standard --html runs/standard/report.html

# With 100 questions a category, of which 5 % change, and four policies beside f16 a loss of 7.5 points is found.
REAL_TASKS := bfcl human-eval gsm8k
REAL_N     := 100
REAL_POLICIES := $(foreach policy,f16 q8_0 k8v4 hybrid q4_0,--policy $(policy))

.PHONY: real
real: $(VENV)/run.stamp ## Measure policies on real language models, for hours; run again to resume
	@set -e; \
	text=$$($(BIN)/kvquant texts get prose); \
	bin=$$($(BIN)/kvquant llama build --jobs $(JOBS)); \
	$(BIN)/python tools/real_models.py measure --text "$$text" --programs "$$bin"; \
	for model in qwen2.5-coder-0.5b qwen2.5-coder-1.5b; do \
		for suite in $(REAL_TASKS) speed; do \
			$(BIN)/kvquant validate --llama-bin "$$bin" --model $$model --suite $$suite --n $(REAL_N) \
				$(REAL_POLICIES) --out runs/real/$$model.$$suite || [ $$? -eq 3 ]; \
		done; \
	done

.PHONY: sweep
sweep: $(VENV)/run.stamp ## Every setting of two real models on this machine; run again to resume
	OMP_WAIT_POLICY=passive $(BIN)/kvquant sweep eval/sweep/here.toml --out runs/sweep \
		--llama-bin "$$($(BIN)/kvquant llama build --jobs $(JOBS))"

SANITIZE := -DLLAMA_SANITIZE_ADDRESS=ON -DLLAMA_SANITIZE_UNDEFINED=ON -DCMAKE_BUILD_TYPE=None
SANITIZED := llama-server llama-kv-layers-test llama-kv-divergence llama-kv-capture llama-kv-moments llama-kv-attention-op \
	llama-quantize llama-perplexity llama-bench
SANITIZE_FLAGS := -O0 -g1 -fno-omit-frame-pointer
REPORTS := $(CURDIR)/.cache/sanitize

.PHONY: sanitize
sanitize: $(VENV)/test.stamp ## The proofs against a build with address and undefined-behaviour sanitizers
	@set -e; \
	rm -rf $(REPORTS); mkdir -p $(REPORTS); \
	bin=$$($(BIN)/kvquant llama build --jobs $(JOBS) $(foreach name,$(SANITIZED),--program $(name)) \
		$(foreach arg,$(SANITIZE),--cmake-arg $(arg)) \
		--cmake-arg "-DCMAKE_C_FLAGS=$(SANITIZE_FLAGS)" --cmake-arg "-DCMAKE_CXX_FLAGS=$(SANITIZE_FLAGS)"); \
	KVQUANT_LLAMA_BIN=$$bin ASAN_OPTIONS=log_path=$(REPORTS)/report \
		UBSAN_OPTIONS=print_stacktrace=1:log_path=$(REPORTS)/report \
		$(BIN)/pytest --numprocesses $(JOBS) tests/llama/test_proof_*.py tests/attention 2>&1 | tee $(REPORTS)/tests; \
	$(BIN)/python tools/sanitizer_report.py $(REPORTS)/report --build-info "$$bin/../build-info.json" \
		--tests $(REPORTS)/tests --out benchmarks/results/sanitize.json
