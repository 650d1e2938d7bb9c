# Needs make and python3 >= 3.10 with venv; everything else is installed into a virtual environment.
#   make demo   text of this machine, training, export, evaluation, samples: in ./demo, and mixture.png here
#   make test   what is missing from the dev requirements, then the tests
#   make lint   ruff and mypy          make docs   configs/neox_arguments.md and docs/migration.md
#   make clean  removes ./demo, caches and .venv
#   make constraints   requirements/constraints.txt: the versions that are in VENV
# VENV=path uses another virtual environment (made when it is not there).
# CONSTRAINTS= takes the newest versions that the requirements allow, not those that CI ran.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON3 ?= python3
VENV ?= .venv
PYTHON := $(VENV)/bin/python
CONSTRAINTS ?= requirements/constraints.txt
INSTALL := $(PYTHON) -m pip install --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))
# loadfile: the tests of a file share the processes that a fixture starts; in order, the slow files first
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder --timeout 300 -m "not slow and not gpu"

# One thread a test worker: two workers with two threads each would fight for two cores.
test: export OMP_NUM_THREADS ?= 1

.PHONY: help venv install install-dev constraints demo test lint docs clean

help:
	@sed -n '2,9s/^# \{0,1\}//p' Makefile

# Asks pip, not for the file bin/python: an interrupted venv has python already and pip not yet.
venv:
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON3) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Makefile: needs Python >= 3.10, got " + sys.version.split()[0] + "; name another with PYTHON3=")'; \
	  echo '$(PYTHON3) -m venv $(VENV)'; \
	  $(PYTHON3) -m venv $(VENV); }

# A stamp is written after its installation has ended: an interrupted one is simply done again.
$(VENV)/.installed: requirements/requirements.txt $(CONSTRAINTS) | venv
	$(INSTALL) -r requirements/requirements.txt
	@touch $@

# The demo's export and its task; tests and linters bring the same and more.
$(VENV)/.installed-eval: requirements/requirements.txt requirements/requirements-eval.txt $(CONSTRAINTS) | venv
	$(INSTALL) -r requirements/requirements.txt -r requirements/requirements-eval.txt
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: requirements/requirements.txt requirements/requirements-dev.txt $(CONSTRAINTS) | venv
	$(INSTALL) -r requirements/requirements.txt -r requirements/requirements-dev.txt
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# torch's build (+cpu, +cu130) is left out: which one fits depends on the machine.
constraints:
	@$(PYTHON) -m pip freeze --exclude odm-neox --exclude odm >requirements/constraints.txt.tmp
	@{ sed -n '/^#/p' requirements/constraints.txt; \
	  sed -En 's/^([A-Za-z0-9._-]+==[^+ ]+)(\+.*)?$$/\1 ; python_version >= "3.11"/p' requirements/constraints.txt.tmp; \
	} >requirements/constraints.txt.new
	@mv requirements/constraints.txt.new requirements/constraints.txt; rm requirements/constraints.txt.tmp

demo: $(VENV)/.installed-eval
	$(PYTHON) tools/demo.py

test: install-dev
	$(PYTHON) -m pytest $(PYTEST_ARGS) tests

lint: install-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs: install
	$(PYTHON) configs/gen_docs.py
	$(PYTHON) -m tools.benchmark.migration

clean:
	rm -rf demo .venv .ci-venv build dist odm/build *.egg-info odm/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find odm megatron tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
