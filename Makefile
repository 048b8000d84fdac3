# make compare   train one model in every way and put the results side by side
# make test      run every test
# Each makes .venv and installs into it first, once. Nothing else on the machine is needed
# but Python >= 3.11: MPI itself comes as a wheel.

PYTHON ?= python3
BIN := .venv/bin
RANKS ?= 4

.PHONY: help setup compare test lint clean
.DEFAULT_GOAL := help

help:
	@echo "make compare   train one model in every way on $(RANKS) MPI ranks, side by side (writes out/)"
	@echo "make test      run every test"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove .venv and out/"

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("minidist needs Python >= 3.11, and %s is %s: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mpich,dev]'
	@touch $@

compare: .venv/installed
	$(BIN)/minidist compare --ranks $(RANKS) --out out/compare

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv out
