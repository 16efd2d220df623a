# Development commands; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
# Errors only; PIP_FLAGS= shows what pip does. What is imported is compiled then, not all of 6 GB.
PIP_FLAGS ?= -qq --disable-pip-version-check --no-compile
# Extra arguments of pytest, e.g. make test PYTEST_ARGS='-n 4 -m "not slow"'
PYTEST_ARGS ?=
# Inputs of each kind that make fuzz tries
FUZZ_EXAMPLES ?= 5000
# What make bench runs
BENCH_ARGS ?= all --json work_dirs/benchmark.json
# What make stress runs with, e.g. --kills 6 --seed 1
STRESS_ARGS ?=

RUN := $(VENV)/bin/python
SETUP := $(VENV)/.setup.stamp

# The original OpenMMLab packages have an environment of their own (docs/upstream.md). mmcv 2.1.0
# is compiled in it: as C++17, which the headers of torch 2.14 refuse, and by a setup.py that
# imports pkg_resources, which newer releases of setuptools lack.
UPSTREAM ?= .venv-upstream
UPSTREAM_TORCH ?= torch==2.12.1 torchvision==0.27.1
# What make test-upstream runs: everything that meets OpenMMLab, and the core below it
UPSTREAM_TESTS ?= cdra_mm/mm tests/core tests/mm tests/tools tests/test_configs.py
# Compilers at a time, about 1.5 GB of memory each
MAX_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

# The lowest versions that the package allows have an environment of their own (tests/floor.txt);
# PYTHON=python3.10 takes the lowest Python, too.
FLOOR ?= .venv-floor
FLOOR_RUN := $(FLOOR)/bin/python
FLOOR_SETUP := $(FLOOR)/.setup.stamp

UPSTREAM_RUN := $(UPSTREAM)/bin/python
UPSTREAM_SETUP := $(UPSTREAM)/.setup.stamp

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-upstream test-floor coverage fuzz lint bench stress format clean compare

help: ## List these commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(SETUP) ## Make the environment in .venv with everything needed (about 2 minutes, 6 GB)

# Redone only when the project's metadata changed; the stamp is written last, so that an
# interrupted installation is not taken for a finished one.
$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; try make PYTHON=python3.11 setup" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 2 minutes, 6 GB) ..."
	@$(RUN) -m pip install $(PIP_FLAGS) -e '.[onedl,test,demo]'
# yapf, which mmengine imports, writes a cache on its first import: not by two processes at once.
	@$(RUN) -c 'import yapf'
	@touch $@

demo: $(SETUP) ## Fine-tune a small ViT on generated segmentation data, end to end
	@$(RUN) tools/demo.py

test: $(SETUP) ## Run the tests and the doctests
	@$(RUN) -m pytest $(PYTEST_ARGS)

test-upstream: $(UPSTREAM_SETUP) ## Test with the original OpenMMLab packages (the first time compiles mmcv: 20 to 40 minutes)
	@$(UPSTREAM_RUN) -m pytest $(PYTEST_ARGS) $(UPSTREAM_TESTS)

# mmcv comes before the rest: pip would compile it apart from torch, and so without its operators.
# A GPU is hidden from its setup.py, which would ask for CUDA's compiler; the tests need none of it.
$(UPSTREAM_SETUP): pyproject.toml
	@command -v c++ >/dev/null && $(PYTHON) -c 'import os, sys, sysconfig; \
	  sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "error: mmcv needs a C++ compiler and the headers of $(PYTHON) (Debian: apt-get install g++ python3-dev)" >&2; exit 2; }
	@test -x $(UPSTREAM_RUN) || $(PYTHON) -m venv $(UPSTREAM)
	@echo "Installing into $(UPSTREAM) (6 GB; compiling mmcv takes 20 to 40 minutes the first time) ..."
	@$(UPSTREAM_RUN) -m pip install $(PIP_FLAGS) 'setuptools>=77,<81' ninja $(UPSTREAM_TORCH)
	@MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES= MAX_JOBS=$(MAX_JOBS) \
	  $(UPSTREAM_RUN) -m pip install $(PIP_FLAGS) --no-build-isolation mmcv==2.1.0
	@$(UPSTREAM_RUN) -m pip install $(PIP_FLAGS) -e '.[openmmlab,test]'
	@touch $@

test-floor: $(FLOOR_SETUP) ## Test with the lowest versions that the package allows (the first time installs 6 GB)
	@$(FLOOR_RUN) -m pytest $(PYTEST_ARGS)

$(FLOOR_SETUP): pyproject.toml tests/floor.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "error: torch 2.6 has no wheels for $(PYTHON): expected Python 3.10 to 3.13, e.g. make PYTHON=python3.10 test-floor" >&2; exit 2; }
	@test -x $(FLOOR_RUN) || $(PYTHON) -m venv $(FLOOR)
	@echo "Installing into $(FLOOR) (6 GB) ..."
	@$(FLOOR_RUN) -m pip install $(PIP_FLAGS) -e '.[onedl,test,demo]' -c tests/floor.txt
	@touch $@

coverage: $(SETUP) ## Run the tests and say which lines and branches they reach (twice the time)
	@$(RUN) -m pytest --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

fuzz: $(SETUP) ## Try thousands of damaged plans, adapter files, lists and settings (FUZZ_EXAMPLES of each)
	@CDRA_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(RUN) -m pytest tests/fuzz --timeout 0 $(PYTEST_ARGS)

lint: $(SETUP) ## Check style, format and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

docs: $(SETUP) ## Build the documentation as a site in site/
	@$(RUN) -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(RUN) -m pip install $(PIP_FLAGS) -e '.[docs]'
	@$(RUN) -m mkdocs build --strict

bench: $(SETUP) ## Compare speed and memory with limits and peers (BENCH_ARGS='step --model ViT-B')
	@$(RUN) -c 'import timm, peft, opacus, backpack' 2>/dev/null || \
	  $(RUN) -m pip install $(PIP_FLAGS) -e '.[bench]'
	@$(RUN) tools/benchmark.py $(BENCH_ARGS)

compare: $(SETUP) ## Compare with the methods of Hugging Face peft on small data (hours; needs CDRA_VTAB_ROOT and others)
	@$(RUN) tools/tables.py compare_peft --jobs 2 --report --against cdra_energy
	@$(RUN) -m cdra_mm.tables.small_costs configs/tables/compare_peft.py --task caltech101 \
	  --json work_dirs/tables/compare_peft/costs.json

stress: $(SETUP) ## Kill a small run 30 times, resume it each time, compare (10 minutes; STRESS_ARGS='--kills 6')
	@$(RUN) tools/stress.py $(STRESS_ARGS)

format: $(SETUP) ## Mend what ruff can mend
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean: ## Remove .venv, caches and build output; data, work_dirs, .venv-upstream and .venv-floor stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find cdra_mm tests tools configs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
