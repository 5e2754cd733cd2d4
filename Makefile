# Everything a fresh machine needs: Python 3.11 or newer, make.
#   make quickstart   installs, trains on the digits that ship with the project, prints the scores
#   make tutorial     installs, trains the tutorials' encoder and decoder on them, writes a page about both
#   make test         installs, runs the tests
#   make test-all     the same and the slow tests, which take minutes each
#   make docs         builds the site of the documentation, build/site/index.html
#   make lower-bounds tries the lowest versions that setup.py allows, in an environment of their own

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart tutorial test test-all docs lower-bounds lint clean

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simclr_jax needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Compiled while it is installed, TensorFlow starts in 10 s instead of 30.
INSTALL = env -u PYTHONDONTWRITEBYTECODE $(BIN)/pip install --quiet --disable-pip-version-check -e

$(VENV)/.installed: $(VENV)/bin/python setup.py pyproject.toml simclr_jax/version.py
	$(INSTALL) .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python setup.py pyproject.toml simclr_jax/version.py
	$(INSTALL) ".[test]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python setup.py pyproject.toml simclr_jax/version.py
	$(INSTALL) ".[docs]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python -m simclr_jax.main --config=configs/quickstart.py

tutorial: $(VENV)/.installed
	$(BIN)/python -m simclr_jax.main --config=configs/tutorial.py
	$(BIN)/python -m simclr_jax.evaluate --workdir=runs/tutorial --protocols=scores,lbfgs,reconstructions

BANDIT = $(BIN)/bandit -q -r simclr_jax tools -c pyproject.toml

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BANDIT)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.installed-test $(VENV)/.installed-docs
	TEST_XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

# Warnings are errors; all of them are shown before it fails.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	@echo build/site/index.html

lint: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BANDIT)
	$(BIN)/pyright --pythonpath $(BIN)/python

LOWEST = $(VENV)-lowest

lower-bounds:
	$(PYTHON) -m venv $(LOWEST)
	env -u PYTHONDONTWRITEBYTECODE $(LOWEST)/bin/pip install --quiet -c tools/lower_bounds.txt -e ".[test]"
	TEST_XLA_FLAGS= $(LOWEST)/bin/python -m pytest tests/test_config.py tests/test_losses.py tests/test_optim.py tests/test_data.py
	TEST_XLA_FLAGS= $(LOWEST)/bin/python -m pytest tests/test_train.py -k "leaves_behind or tensorboard or kill"
	$(LOWEST)/bin/python -m simclr_jax.main --config=configs/quickstart.py --config.train.steps=20 \
		--workdir=$(LOWEST)/run

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info
