# Needs Python >= 3.11 and make, nothing else. `make PYTHON=python3.13 setup` picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# How many seeds `make test-all` simulates; `make test` simulates the first 30.
SEEDS ?= 1000
# Stacks on which `make test-all` runs the tests that start processes; `make test` runs them on `sqlite`.
STACKS ?= sqlite+redis7 sqlite+redis8 sqlite+valkey postgres postgres+valkey

# Stacks on which `make soak` runs, and for how many minutes each.
SOAK ?= sqlite sqlite+valkey postgres postgres+valkey
MINUTES ?= 30

# Unit tests: they use the memory driver or an SQLite file, and start neither a process nor a server.
UNIT := tests/bus tests/dependencies tests/models tests/services $(wildcard tests/example/services) tests/infra/mail $(wildcard tests/infra/test_*.py)
WITHOUT_SERVERS := -m "not thorough and not e2e" -k "not [postgres] and not [valkey]"

# The tests start many processes, and each would compile the source anew if it could not store the result.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup start dev test test-fast coverage test-all soak check bench bench-gate bench-drivers bench-memory bench-http fmt lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "beneath needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(READY)  ## Create .venv from the pinned, hashed requirements

start: $(READY)  ## Migrate, then run the server and the worker on SQLite, at 127.0.0.1:4000
	@$(BIN)/beneath migrate up
	@exec $(BIN)/beneath start all

dev: $(READY)  ## Like start, and restart when a source file changes
	@$(BIN)/beneath migrate up
	@exec $(BIN)/beneath start all --reload

test: $(READY)  ## Run the tests
	@$(BIN)/python -m pytest -n auto -m "not thorough"

test-fast: $(READY)  ## Run the unit tests alone, without processes and servers
	@$(BIN)/python -m pytest -n logical -q $(WITHOUT_SERVERS) $(UNIT)

coverage: $(READY)  ## Report which lines and branches the unit tests run, and fail below the floor in pyproject.toml
	@$(BIN)/python -m pytest -n logical -q $(WITHOUT_SERVERS) --cov --cov-report=term $(UNIT)

test-all: $(READY)  ## Run what `make test` omits: thorough tests, more seeds, other servers, processes on other stacks
	@$(BIN)/python -m pytest -n auto -m thorough
	@BENEATH_TEST_DRIVERS=redis7,redis8 $(BIN)/python -m pytest -n auto -m "not thorough" tests/contract
	@BENEATH_TEST_FIRST_SEED=1000 BENEATH_TEST_SEEDS=$(SEEDS) $(BIN)/python -m pytest -n auto tests/simulation
	@set -e; for stack in $(STACKS); do echo "== $$stack"; BENEATH_TEST_STACK=$$stack $(BIN)/python -m pytest -n auto tests/e2e tests/torture $(wildcard tests/example/e2e); done

soak: $(READY)  ## Run all kinds of faults at once, MINUTES on each of the stacks in SOAK
	@set -e; for stack in $(SOAK); do BENEATH_TEST_STACK=$$stack $(BIN)/python -m tests.soak --minutes $(MINUTES); done

check: $(READY)  ## Lint, check types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --threads
	@$(BIN)/lint-imports

bench: $(READY)  ## Measure against peers and bare loops, and write docs/benchmarks.md; QUICK=1: 3 minutes, into build/bench
	@$(BIN)/python -m tests.bench.run $(if $(QUICK),--quick)

bench-gate: $(READY)  ## Fail if a driver is far slower than a loop of its bare client
	@$(BIN)/python -m tests.bench.gate

bench-drivers: $(READY)  ## Compare every queue driver with a loop of its bare client
	@$(BIN)/python -m tests.bench.drivers

bench-memory: $(READY)  ## Measure the memory of a worker beyond its imports, with an empty queue and with a million events
	@$(BIN)/python -m tests.bench.memory

bench-http: $(READY)  ## Compare GETs of the API with bare FastAPI routes that run the same queries
	@$(BIN)/python -m tests.example.bench.http

fmt: $(READY)  ## Format, and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock:  ## Pin the requirements anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --upgrade --group dev pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --upgrade --extra postgres -c requirements/dev.txt pyproject.toml -o requirements/production.txt

clean:  ## Remove .venv and caches; data/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
