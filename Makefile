# make book · make test · make lab · make full · make bench · make clean.  Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
# Options for pip, for instance where to take a CPU build of torch from (README, "Smaller without a GPU").
PIP_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env book test lab full bench clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make book   run what changed and build the site in _build/html"
	@echo "make test   run the tests"
	@echo "make lab    open the notebooks in JupyterLab"
	@echo "make full   run the full profile (a GPU or patience) and rebuild the site"
	@echo "make bench  run the benchmarks"
	@echo "make clean  remove the site and the quick runs; make distclean: also full runs and $(VENV)"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,encoder]'
	@touch $@

book: $(STAMP)
	@$(BIN)/python -m snakemake --cores $$($(BIN)/python -c 'from zfu_lib.report import machine; print(machine.jobs())') book
	@echo "The book is at $(CURDIR)/_build/html/index.html"

test: $(STAMP)
	@$(BIN)/python -m pytest -q

lab: $(STAMP)
	@$(BIN)/python -m jupyter lab notebooks

full: $(STAMP)
	@$(BIN)/python -m snakemake --cores all --config profile=full publish=yes runs
	@$(MAKE) --no-print-directory book

bench: $(STAMP)
	@set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

clean:
	rm -rf _build .snakemake runs/quick .pytest_cache .ruff_cache .import_linter_cache

distclean: clean
	rm -rf runs $(VENV) *.egg-info
