# make demo: the main job in a minute.  make test: everything that is checked on each change.
# Both make their own environment in .venv first; nothing but Python 3.11 or newer has to be there.

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Measured by the fast suite alone; raise it when the measure rises.
CORE_COVERAGE := 90

.PHONY: demo test lint fast slow faults bench build venv clean

demo: $(STAMP)
	$(BIN)/ktrdr-ops demo

test: lint fast

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(STAMP)
	$(BIN)/pytest -n 2 -m "not slow and not full and not benchmark" --cov --cov-report=term --cov-fail-under=$(CORE_COVERAGE)

slow: $(STAMP)
	$(BIN)/pytest -m "slow and not full and not benchmark" --timeout 900

faults: $(STAMP)
	$(BIN)/pytest tests/faults -m "full" -s --timeout 7200

bench: $(STAMP)
	$(BIN)/pytest -m benchmark -s --timeout 900

build: $(STAMP)
	$(BIN)/python -m build

venv: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make an environment: install its venv module (Debian: python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
