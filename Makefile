# make sweep and make test are all most people need. Both begin with .venv, made from requirements-cpu.lock where it is
# missing or out of date (.ci/venv), so nothing has to be installed first but make and Python 3.11 or 3.12.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
UV ?= uv
KEEP ?=
SWEEP ?= pick_strength
ARGS ?=
export PYTHON TORCH_INDEX UV KEEP
# Set on some machines; without its bytecode vLLM takes 15 s of compiling at every single start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
LINT = $(BIN)/ruff check . || status=$$?; $(BIN)/ruff format --check . || status=$$?; $(BIN)/mypy || status=$$?; \
	$(BIN)/lint-imports --no-logo || status=$$?
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FAST = -q -m 'not slow and not engine and not gpu'

.PHONY: help sweep test long check lint format hooks docs jobs env env-cuda lock clean

help:
	@echo 'make sweep     run the sweep $(SWEEP) on the embedded model; results go to outputs/'
	@echo '                 another sweep, other settings:  make sweep SWEEP=ban_threshold ARGS="model=tiny_control"'
	@echo 'make test      ruff (lint and format), mypy, import-linter, then every test'
	@echo 'make long      the tests that take minutes each: faults done to running sweeps'
	@echo 'make check     the same with the fast tests alone, in under a minute: for every change'
	@echo '                 one room:  make check ARGS=tests/policy'
	@echo 'make lint      the same without tests'
	@echo 'make format    rewrites the Python files as the format check wants them'
	@echo 'make hooks     ruff and import-linter before every commit of this clone (pre-commit)'
	@echo 'make docs      the pages of docs/ and a reference from the docstrings, as build/docs/index.html'
	@echo 'make jobs      the job files and pages of sweeps/, from each study.yaml and the templates'
	@echo 'make env       .venv alone (Linux x86_64, Python 3.11 or 3.12)'
	@echo '                 another Python:  make env PYTHON=/path/to/python3.12'
	@echo 'make env-cuda  .venv-cuda from requirements-cuda.lock, for GPU machines'
	@echo 'make lock      resolve pyproject.toml into both lock files again; needs uv (make lock UV=/path/to/uv)'
	@echo '                 a new dependency alone, every other version kept:  make lock KEEP=1'
	@echo 'make clean     remove the environments, caches and build folders; outputs/ stays'

sweep: env
	@$(BIN)/python -m banpick_exp +sweep=$(SWEEP) $(ARGS)

# Every check runs, whichever fails: one round of a slow machine then shows all there is to mend. Tests run two files at a
# time, one by one with ARGS="-n 0".
test: env
	@status=0; $(LINT); $(PYTEST) -m 'not long' $(ARGS) || status=$$?; exit $$status

# Faults done to whole running sweeps, and a real Slurm where there is one. One at a time: each waits for what a second sweep beside
# it would delay.
long: env
	@$(BIN)/python -m pytest -n 0 -m long --durations=0 --durations-min=1 $(ARGS)

# No engine is started, and nothing is built or trained.
check: env
	@status=0; $(LINT); $(PYTEST) $(FAST) $(ARGS) || status=$$?; exit $$status

lint: env
	@status=0; $(LINT); exit $$status

format: env
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

hooks: env
	@$(BIN)/pre-commit install

# Any warning is an error: a dead link, a docstring whose sections cannot be read.
docs: env
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file .ci/mkdocs.yml

jobs: env
	@$(BIN)/python .ci/job_files.py

env:
	@.ci/venv cpu

env-cuda:
	@.ci/venv cuda

lock:
	@.ci/lock

clean:
	rm -rf .venv .venv-cuda build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
		.hypothesis
	find banpick_exp kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
