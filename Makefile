# Every target sets itself up: the first one on a fresh machine makes .env and installs into it.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .env
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# Two test processes fit the smallest machine; more cores take more.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 2 ] && echo 2 || echo $$n)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check fix docs protos bench size clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1	\2/p' Makefile | expand -t 18

setup: $(READY_DEV) ## make .env with everything, for work on Redline itself

demo: $(READY) ## train a small network on digits, optimize it, check it in a fresh process
	$(BIN)/redline demo --out demo-out

test: $(READY_DEV) ## the quick tests
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

test-all: $(READY_DEV) ## every test that this machine can run
	$(BIN)/python -m pytest -n $(JOBS)

check: $(READY_DEV) ## format, lint, types, layers and the smoke test; run before every commit
	$(BIN)/ruff format --check --quiet . || { echo "run: make fix"; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python tools/size.py --check
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_tiny.py

fix: $(READY_DEV) ## let ruff mend what it can
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

docs: $(READY_DEV) ## write docs/cli.md and docs/operators.md from the code, then test the docs
	$(BIN)/python tools/cli_reference.py
	$(BIN)/python tools/operators_reference.py
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_readme.py

protos: $(READY_DEV) ## write src/redline/serve/proto/descriptors.py from the .proto files
	$(BIN)/python tools/protos.py

bench: $(READY_DEV) ## measure the claims of docs/benchmarks.md (about an hour; leave the machine alone)
	$(BIN)/python bench/zoo.py
	$(BIN)/python bench/native.py
	$(BIN)/python bench/native_gates.py
	$(BIN)/python bench/cold_and_warm.py
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/load.py
	$(BIN)/python bench/copies.py
	$(BIN)/python bench/tune_training.py
	$(BIN)/python bench/fit_overhead.py
	$(BIN)/python bench/serve_grpc.py
	$(BIN)/python bench/serve.py

size: $(READY_DEV) ## lines and functions of every file, and what is over budget
	$(BIN)/python tools/size.py

clean: ## remove .env and everything that was built
	rm -rf $(VENV) build dist src/*.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Redline needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(READY): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(READY_DEV): requirements-dev.txt requirements-nodeps.txt $(READY)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-nodeps.txt
	@touch $@
