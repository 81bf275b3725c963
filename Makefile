# `make help` lists the commands. PYTHON chooses the interpreter: make train PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

train: .venv/installed  ## Train a ResNet-18 on the CPU, on synthetic images, in about a minute
	$(BIN)/python app/train.py --config app/synthetic.yaml

test: .venv/installed-dev  ## Run the tests that take seconds, offline, in less than four minutes
	$(BIN)/pytest -n 2 -m "not docker and not slow"

test-slow: .venv/installed-dev  ## Run the tests that take long: kills, lost hosts, jobs from start to end
	$(BIN)/pytest -n 2 -m "slow and not docker"

test-docker: .venv/installed-dev  ## Build the image and run the tests that need a Docker Engine
	$(BIN)/pytest -m docker

check: .venv/installed-dev  ## Check format and style of Python and shell
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run *.sh docker/*.sh

bench: .venv/installed-dev  ## Measure speed and memory beside what one could use instead: all parts, or PART
	$(BIN)/python tests/bench.py $(PART)

drill: .venv/installed-dev  ## Kill runs in all ways, and compare how they end: 20 times, or N
	$(BIN)/python tests/drill.py $(N)

.venv/installed: requirements.txt requirements-laptop.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo 'Installing into .venv: 7 GB, a few minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-laptop.txt
	$(BIN)/pip check
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt docker/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip check
	$(PYTHON) -m venv .venv/aws  # the AWS CLI wants a botocore of its own
	.venv/aws/bin/pip install --quiet --disable-pip-version-check awscli==1.45.11
	@touch $@

.PHONY: help train test test-slow test-docker check bench drill
