# make sweep and make test are all most people need. Both begin with .venv, made from requirements-cpu.lock where it is
# missing or out of date (.ci/venv), so nothing has to be installed first but make and Python 3.11 or 3.12.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
UV ?= uv
SWEEP ?= pick_strength
ARGS ?=
export PYTHON TORCH_INDEX UV
# Set on some machines; without its bytecode vLLM takes 15 s of compiling at every single start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
LINT = $(BIN)/ruff check . || status=$$?; $(BIN)/ruff format --check . || status=$$?; $(BIN)/mypy || status=$$?

.PHONY: help sweep test lint format env env-cuda lock clean

help:
	@echo 'make sweep     run the sweep $(SWEEP) on the embedded model; results go to outputs/'
	@echo '                 another sweep, other settings:  make sweep SWEEP=ban_threshold ARGS="model=tiny_control"'
	@echo 'make test      ruff (lint and format), mypy, then every test'
	@echo 'make lint      the same without the tests'
	@echo 'make format    rewrites the Python files as the format check wants them'
	@echo 'make env       .venv alone (Linux x86_64, Python 3.11 or 3.12)'
	@echo '                 another Python:  make env PYTHON=/path/to/python3.12'
	@echo 'make env-cuda  .venv-cuda from requirements-cuda.lock, for GPU machines'
	@echo 'make lock      resolve pyproject.toml into both lock files again; needs uv (make lock UV=/path/to/uv)'
	@echo 'make clean     remove the environments, caches and build folders; outputs/ stays'

sweep: env
	@$(BIN)/python -m banpick_exp +sweep=$(SWEEP) $(ARGS)

# Every check runs, whichever fails: one round of a slow machine then shows all there is to mend. Tests run two files at a
# time, one by one with ARGS="-n 0".
test: env
	@status=0; $(LINT); $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) || status=$$?; exit $$status

lint: env
	@status=0; $(LINT); exit $$status

format: env
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

env:
	@.ci/venv cpu

env-cuda:
	@.ci/venv cuda

lock:
	@.ci/lock

clean:
	rm -rf .venv .venv-cuda build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find banpick_exp kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
