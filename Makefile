# make sweep   the embedded default sweep, to results/default/report.html
# make test    the whole test suite
# make truth   joules of twenty runs against the known truth of fake boards, at two ticks: minutes
# make lint    every check of style, types and rules
# All make the environment first, when it is missing or stale.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: sweep test truth lint format environment schema clean
.DEFAULT_GOAL := sweep

environment: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Joulesweep needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV): once, a few minutes, 2 GB or more"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: environment
	@snakemake --cores 2 --quiet all
	@echo "Report: $(CURDIR)/results/default/report.html"

test: environment
	@OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --cov --cov-report term:skip-covered --cov-fail-under 90

truth: environment
	@OMP_NUM_THREADS=1 pytest tests/test_truth.py --long -rP

lint: environment
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	mypy
	snakemake --lint

format: environment
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

schema: environment
	joulesweep schema config/schema.json

clean:
	rm -rf $(VENV)
