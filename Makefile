# make sweep   the embedded default sweep, to results/default/report.html
# make test    the whole test suite
# make truth   joules of twenty runs against the known truth of fake boards, at two ticks: minutes
# make fuzz    3,000 odd configs, 1,000 data files, 300 model folders, 300 records: minutes
# make bench-peers   ours against transformers.Trainer and Lightning, on this machine's CPU: half an hour or more
# make lint    every check of style, types and rules
# All make the environment first, when it is missing or stale.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The peers, in an environment of their own on top of ours: transformers does other things where accelerate is there.
PEERS := .cache/peers
# VizWiz annotations; the default data set where there are none.
VIZWIZ ?= $(wildcard ../shared/data/vizwiz/val.json)
BENCH_PEERS = $(PEERS)/bin/python -m benchmarks.peers $(if $(VIZWIZ),--data $(VIZWIZ)) $(BENCH_PEERS_OPTIONS)

.PHONY: sweep test truth fuzz bench-peers lint format environment schema clean
.DEFAULT_GOAL := sweep

environment: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Joulesweep needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV): once, a few minutes, 2 GB or more"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: environment
	@joulesweep check config/config.yaml
	@snakemake --cores 2 --quiet all
	@echo "Report: $(CURDIR)/results/default/report.html"

test: environment
	@OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --cov --cov-report term:skip-covered --cov-fail-under 90

truth: environment
	@OMP_NUM_THREADS=1 pytest tests/test_truth.py --long -rP

fuzz: environment
	@JOULESWEEP_FUZZ=whole OMP_NUM_THREADS=1 pytest tests/test_fuzz.py

$(PEERS)/.ready: $(VENV)/.ready
	@$(PYTHON) -m venv --clear $(PEERS)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$purelib" > "$$($(PEERS)/bin/python -c "$$purelib")/joulesweep-environment.pth"
	@$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]'
	@touch $@

bench-peers: $(PEERS)/.ready
	@$(BENCH_PEERS) --model tiny --json benchmarks/results/peers_tiny_fp32.json
	@$(BENCH_PEERS) --model minilm --json benchmarks/results/peers_minilm_fp32.json

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
	rm -rf $(VENV) $(PEERS)
