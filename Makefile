# The two commands of the README are `make demo` and `make test`. Each works alone on a fresh clone: it creates .venv
# and installs the pinned versions first, and skips that when nothing they depend on has changed.
#
# Variables:  PYTHON     the interpreter that creates .venv (3.11 or later)
#             MARKS      which tests `make coverage` runs; all where it is empty
#             PIP_FLAGS  further options for pip, e.g. --extra-index-url where the CPU build of torch has its own index
#             JOBS       how many processes run the tests of `make test`, each with up to 1.5 GB

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2
MARKS ?= not slow
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS := .ci/constraints.txt
SOURCES := npusim compiler models tests notebooks

# The build environment of `pip install -e .` obeys the same pins: older pips read the first, newer ones the second.
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_BUILD_CONSTRAINT := $(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help install demo notebooks lint verilator chromium test test-slow mutants coverage check clean

help:
	@echo "make demo       install, then generate a clip with the float model and on the NPU, and report (runs/demo)"
	@echo "make test       install, then ruff, mypy and the tests that are not slow"
	@echo "make test-slow  install, then the slow tests"
	@echo "make mutants    install, then plant slips in engine and RTL, each of which the tests must notice (part of test-slow)"
	@echo "make coverage   install, then the share of Python lines that the tests run (MARKS='not slow'; MARKS= takes all)"
	@echo "make check      what CI runs: test, then test-slow"
	@echo "make notebooks  install, then execute the notebooks; copies with all figures go to runs/notebooks"
	@echo "make lint       install, then ruff and mypy only"
	@echo "make verilator  install what the tests of the RTL run on, where that may be done (root, apt-get)"
	@echo "make chromium   install what the slow tests of the report run in, where that may be done"
	@echo "make clean      remove .venv, caches and runs/demo"

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is older than Python 3.11; name another one with PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/npusim run --workload emoji --hw hwconfigs/edge_8k.yaml --method cw_tw --out runs/demo

notebooks: $(STAMP)
	$(BIN)/python notebooks/pair.py --execute runs/notebooks

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

# What renders reports in the slow tests; as verilator below.
chromium:
	@.ci/chromium

# Part of both test targets; where it may not install, it says what to install, and the tests that need it fail.
verilator:
	@.ci/verilator

test: lint verilator
	$(BIN)/python -m pytest -m "not slow" --timeout 300 -n $(JOBS) --dist loadfile

# pytest exits with 5 when it collects no test; having no slow test is not a failure.
test-slow: $(STAMP) verilator chromium
	$(BIN)/python -m pytest -m slow --timeout 2700 || { rc=$$?; [ $$rc -eq 5 ] || exit $$rc; }

mutants: $(STAMP) verilator
	$(BIN)/python -m pytest -m slow tests/npusim/test_engine_mutants.py tests/cosim/test_mutants.py

coverage: $(STAMP) verilator
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "$(MARKS)" --timeout 2700 -n $(JOBS) --dist loadfile
	$(BIN)/python -m coverage combine
	$(BIN)/python -m coverage report

check:
	$(MAKE) test
	$(MAKE) test-slow

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist runs/demo
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
