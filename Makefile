# Development commands; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
# Errors only; PIP_FLAGS= shows what pip does.
PIP_FLAGS ?= -qq --disable-pip-version-check
# Extra arguments of pytest, e.g. make test PYTEST_ARGS='-n 4 -m "not slow"'
PYTEST_ARGS ?=
# What make bench runs
BENCH_ARGS ?= all --json work_dirs/benchmark.json

RUN := $(VENV)/bin/python
SETUP := $(VENV)/.setup.stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench format clean

help: ## List these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(SETUP) ## Make the environment in .venv with everything needed (about 2 minutes, 6 GB)

# Redone only when the project's metadata changed; the stamp is written last, so that an
# interrupted installation is not taken for a finished one.
$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; try make PYTHON=python3.11 setup" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 2 minutes, 6 GB) ..."
	@$(RUN) -m pip install $(PIP_FLAGS) -e '.[onedl,test,demo]'
	@touch $@

demo: $(SETUP) ## Fine-tune a small ViT on generated segmentation data, end to end
	@$(RUN) tools/demo.py

test: $(SETUP) ## Run the tests and the doctests
	@$(RUN) -m pytest $(PYTEST_ARGS)

lint: $(SETUP) ## Check style, format and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

bench: $(SETUP) ## Compare speed and memory with limits and peers (BENCH_ARGS='step --model ViT-B')
	@$(RUN) -c 'import timm, peft, opacus, backpack' 2>/dev/null || \
	  $(RUN) -m pip install $(PIP_FLAGS) -e '.[bench]'
	@$(RUN) tools/benchmark.py $(BENCH_ARGS)

format: $(SETUP) ## Mend what ruff can mend
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean: ## Remove the environment, caches and build output; data and work_dirs stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find cdra_mm tests tools configs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
