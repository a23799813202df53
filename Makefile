# Every target is a step of CI. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup compile lint test-unit test contract demo bench soak clean purge

export UV_PYTHON_DOWNLOADS := never
# Each worker has servers of its own, about 3 GB; the tests of a file stay together, in the order of
# tests/conftest.py.
PYTEST := .venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Processes of the stack come and go; where bytecode may not be written, each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .streambank/uv/bin/uv)
STREAMBANK := .venv/bin/streambank
SYNCED := .venv/.synced

help: ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(SYNCED) ## Locked environment and servers; a second run does nothing.
	@$(STREAMBANK) setup

$(SYNCED): pyproject.toml uv.lock
	@command -v python3.11 >/dev/null && python3.11 -c 'import venv' || { \
	    echo 'Python 3.11 is missing. Install it: apt-get install python3.11 python3.11-venv (Debian), or pyenv install 3.11' >&2; exit 1; }
	@[ -x "$(UV)" ] || { \
	    python3.11 -m venv .streambank/uv && .streambank/uv/bin/python -m pip install --quiet 'uv>=0.9'; }
	$(UV) sync --locked --python 3.11
	@touch $(SYNCED)

compile: $(SYNCED) ## Compile the kernels before anybody waits for it.
	@$(STREAMBANK) compile

lint: $(SYNCED) ## Style, types and import contracts.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

test-unit: compile ## The tests that start no server.
	$(PYTEST) -m 'not stack'

test: $(SYNCED) ## Everything.
	@$(MAKE) --no-print-directory -j3 setup lint compile
	$(PYTEST) --durations=20

contract: setup compile ## Many requests of every operation of the OpenAPI document, some minutes.
	STREAMBANK_CONTRACT_EXAMPLES=$${STREAMBANK_CONTRACT_EXAMPLES:-100} .venv/bin/pytest tests/integration/test_api_contract.py

demo: setup ## Run the main job on about a minute of simulated card payments.
	@$(STREAMBANK) demo

bench: setup ## Measure, print and store the figures of the README.
	@$(STREAMBANK) bench

soak: setup ## Millions of transfers while every process is killed in turn; then all must be right.
	@$(STREAMBANK) soak ledger

clean: ## Stop the stack; remove its data and all caches.
	@[ ! -x $(STREAMBANK) ] || $(STREAMBANK) down
	rm -rf .streambank/data .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

purge: clean ## Also remove the environment and the servers; the next set-up downloads them again.
	rm -rf .venv .streambank
