# make sweep   the embedded default sweep, to results/default/report.html
# make test    the quick tier of the tests: minutes
# make test-all      all tests but the longest, with coverage, as CI runs them: a quarter of an hour
# make test-oldest   what of the quick tier asks transformers for something, with the oldest that is supported
# make families  every family of models in every way, against a plain loop: a quarter of an hour
# make truth   joules of runs under load steps, waves, resets and clock steps against the known truth of fake boards: minutes
# make long    what `make test-all` leaves out because it takes long, `make families` and `make truth` too: an hour
# make fuzz    3,000 odd configs, 1,000 data files, 300 model folders, 300 records: minutes
# make storm   a sweep of 60 runs hit by 30 faults at random moments, and what became of it: minutes
# make studies   the offline twin of every study, one after the other, each with its answer: up to six minutes each
# make gpu-pack   what a machine with a GPU is given for the first minutes there: wheels, models, texts, the package
# make bench-peers   ours against transformers.Trainer and Lightning, on this machine's CPU: half an hour or more
# make trackers   what Zeus, codecarbon, carbontracker and plain readings say of one burn, on this machine: five minutes
# make docs    this documentation as a site, .cache/site/index.html; every warning is an error
# make lint    every check of style, types and rules
# make format  mend what of the style can be mended
# make schema  write config/schema.json from the config's model
# make environment   .venv, with everything but the extras of the peers and of the site
# make clean   remove the environments
# All make the environment first, when it is missing or stale.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The peers, in an environment of their own on top of ours: transformers does other things where accelerate is there.
PEERS := .cache/peers
# Other tools that track energy, likewise: never part of a run.
TRACKERS := .cache/trackers
TRACKERS_PINS := codecarbon==3.3.2 carbontracker==2.4.7
# The oldest transformers that is supported, likewise, with the hub's library that it wants.
OLDEST := .cache/oldest
OLDEST_PINS := transformers==5.17.0 huggingface_hub==1.33.0
# What asks transformers for something. torch.jit.script, which that version uses, warns of its end.
OLDEST_TESTS := $(addprefix tests/unit/,nets methods prepare/test_model.py prepare/test_tokens.py \
	$(addprefix train/test_,tasks.py scoring.py fit.py))
# The executors for clusters, likewise: each Snakemake that finds that of Slurm starts 1.4 s later.
SLURM := .cache/slurm
# Three workers for two cores, since many tests wait for processes and meters that they have started; whoever is done
# takes over half of the others' rest.
WORKERS := 3
PYTEST = OMP_NUM_THREADS=1 python $(COVERED) -m pytest --numprocesses $(WORKERS) --dist worksteal
# Which lines ran in the tests' own processes.
COVERAGE := .cache/coverage.json
QUICK := -m 'smoke or not (workflow or slow or product or registry)'
# The site's own packages, likewise.
DOCS := .cache/docs
# VizWiz annotations; the default data set where there are none.
VIZWIZ ?= $(wildcard ../shared/data/vizwiz/val.json)
BENCH_PEERS = $(PEERS)/bin/python -m benchmarks.peers $(if $(VIZWIZ),--data $(VIZWIZ)) $(BENCH_PEERS_OPTIONS)

INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: sweep test test-all test-oldest families truth long fuzz storm studies bench-peers trackers gpu-pack docs lint format environment schema clean
.DEFAULT_GOAL := sweep

environment: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Joulesweep needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV): once, a few minutes, 2 GB or more"
	@echo "  1 of 3: an empty environment"
	@$(PYTHON) -m venv $(VENV)
	@echo "  2 of 3: torch, most of the download"
	@$(INSTALL) torch
	@echo "  3 of 3: Joulesweep and all else"
	@$(INSTALL) --editable '.[dev]'
	@# On all cores, where pip would take one, and without the tests of the libraries.
	@$(BIN)/python -m compileall -qq --workers 0 -x '/tests?/' $(VENV)/lib || true
	@touch $@

sweep: environment
	@joulesweep check config/config.yaml
	@snakemake --cores 2 --quiet all
	@joulesweep status results/default

test: environment
	@$(PYTEST) $(QUICK)

test-all: COVERED := -m slipcover --json --out $(COVERAGE)
test-all: $(SLURM)/.ready
	@$(PYTEST)
	@python -m slipcover --merge $(COVERAGE) --out $(COVERAGE) --fail-under 90

families: environment
	@OMP_NUM_THREADS=1 pytest tests/conformance/test_families.py --long --numprocesses 2

truth: environment
	@OMP_NUM_THREADS=1 pytest tests/processes/test_truth.py --long -rP

studies: environment
	@for name in $$(joulesweep study --json | $(BIN)/python -c 'import json, sys; print(*json.load(sys.stdin))'); do \
		joulesweep study "$$name" --small --run || exit 1; \
	done

long: environment
	@OMP_NUM_THREADS=1 pytest --long -m long --numprocesses 2

fuzz: environment
	@JOULESWEEP_FUZZ=whole OMP_NUM_THREADS=1 pytest tests/unit/test_fuzz.py

# An environment on top of ours: what it has itself comes first.
define on_top
	@$(PYTHON) -m venv --clear $(1)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$purelib" > "$$($(1)/bin/python -c "$$purelib")/joulesweep-environment.pth"
endef

$(OLDEST)/.ready: $(VENV)/.ready Makefile
	$(call on_top,$(OLDEST))
	@$(OLDEST)/bin/pip install --quiet --disable-pip-version-check $(OLDEST_PINS)
	@touch $@

test-oldest: $(OLDEST)/.ready
	@PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" $(PYTEST) $(QUICK) \
		-W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning' $(OLDEST_TESTS)

$(PEERS)/.ready: $(VENV)/.ready
	$(call on_top,$(PEERS))
	@$(PEERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]'
	@touch $@

bench-peers: $(PEERS)/.ready
	@$(BENCH_PEERS) --model tiny --seeds 5 --json benchmarks/results/peers_tiny_fp32.json
	@$(BENCH_PEERS) --model minilm --json benchmarks/results/peers_minilm_fp32.json

$(TRACKERS)/.ready: $(VENV)/.ready Makefile
	$(call on_top,$(TRACKERS))
	@$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TRACKERS_PINS)
	@touch $@

# Watts that are known, of fake boards and counters: TRACKERS_OPTIONS=--fake.
trackers: $(TRACKERS)/.ready
	@$(TRACKERS)/bin/python -m benchmarks.trackers $(TRACKERS_OPTIONS)

$(SLURM)/.ready: $(VENV)/.ready
	$(call on_top,$(SLURM))
	@$(SLURM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[slurm,cluster]'
	@touch $@

$(DOCS)/.ready: $(VENV)/.ready
	$(call on_top,$(DOCS))
	@$(DOCS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS)/.ready
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo "Site: $(CURDIR)/.cache/site/index.html; with search: python -m http.server --directory .cache/site"

storm: environment
	@OMP_NUM_THREADS=1 python -m benchmarks.storm

gpu-pack: environment
	@python -m benchmarks.gpu_pack

lint: environment
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	mypy
	lint-imports --no-cache --no-logo
	python docs/house.py
	snakemake --lint

format: environment
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

schema: environment
	joulesweep schema config/schema.json

clean:
	rm -rf $(VENV) $(PEERS) $(TRACKERS) $(OLDEST) $(DOCS) $(SLURM)
