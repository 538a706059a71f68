# What the project does by itself. Every target makes the environment it needs, once.
#
#   make quickstart   the whole story on the built-in task, in a few minutes
#   make test         every test, offline, on the CPU
#   make check        formatting, lint, types, and who imports what
#   make docs         the documentation, built strictly into site/
#   make bench        speed against the peers, on the CPU (make bench-gpu: on one GPU)
#   make clean        remove everything made here, but not your runs in output/

# The first interpreter that runs and is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PPO_PEER := .venv-trl-ppo

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test check format docs bench bench-gpu clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

venv: $(VENV)/.installed-dev

quickstart: $(VENV)/.installed
	$(BIN)/tokencredit quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed $(PPO_PEER)/.installed
	$(BIN)/python benchmarks/scoring.py --batch-size 1 --repeats 7
	$(BIN)/python benchmarks/credit.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/ppo.py

bench-gpu: $(VENV)/.installed $(PPO_PEER)/.installed
	$(BIN)/python benchmarks/scoring.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/credit.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/decoding.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/ppo.py --device cuda --size 1b --dtype bfloat16

clean:
	rm -rf $(VENV) $(PPO_PEER) build dist site src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp file per set of packages, so that nothing is installed twice.
$(VENV)/bin/python:
	$(if $(PYTHON),,$(error no Python of at least 3.11 found; expected python3.11 on the PATH, \
	or PYTHON=/path/to/python))
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), once; this takes some minutes"
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(PPO_PEER)/.installed: benchmarks/requirements-trl-ppo.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(PPO_PEER)
	$(PPO_PEER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
