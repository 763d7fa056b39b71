# Everything from a fresh clone: each target makes .venv itself. Needed: make, Python 3.11 or newer, a package index.

PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# `dev` contains `demo`: where the former is installed, the latter need not be.
DEMO := $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev,$(VENV)/.demo)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test check bench format clean FORCE

help:
	@echo "make demo     see contact changes arrive at a subscriber; Ctrl-C ends it"
	@echo "make test     run all tests, JOBS=$(JOBS) at a time"
	@echo "make check    linters, types, imports, the SQL, the Dockerfile"
	@echo "make format   let ruff put the code in order"
	@echo "make bench    measure"
	@echo "make setup    only make $(VENV), with all that the above need"
	@echo "make clean    remove all that the above made"
	@echo "Another Python than $(PYTHON): make … PYTHON=python3.13"

setup: $(VENV)/.dev

demo: $(DEMO)
	@$(BIN)/outbox demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/check_sql
	$(BIN)/squawk sql/*.sql
	$(BIN)/hadolint Dockerfile

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
	    benchmarks/.peers
	find outbox tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when its `python` points nowhere, because that Python was removed from the machine. A half-made one would
# look whole to the next make, so it goes.
$(VENV)/pyvenv.cfg: $(shell test -x $(BIN)/python || echo FORCE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "outbox needs Python 3.11 or newer, and '$(PYTHON)' is none. Name one: make … PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@
