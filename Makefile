# `make help` lists the commands. PYTHON selects the interpreter: make train PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python .venv --require-hashes
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command 'make lock' $(addprefix --upgrade-package ,$(UPGRADE))
IMAGE_LOCK := $(wildcard docker/requirements/*.txt)

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

train: .venv/installed  ## Train a ResNet-18 on the CPU, on synthetic images, in about a minute
	PYTHONPATH=examples/synthetic $(BIN)/python app/train.py --config examples/synthetic/synthetic.yaml

rehearse: .venv/installed-dev  ## Rehearse a spot job on this machine, in a minute or two: launch it, kill one of two hosts, resume
	$(BIN)/python examples/rehearsal/rehearse.py

test: .venv/installed-dev  ## Run the fast tests, offline, in less than four minutes
	$(BIN)/pytest -n 2 -m "not docker and not slow"

test-slow: .venv/installed-dev  ## Run the slow tests: kills, lost hosts, complete jobs
	$(BIN)/pytest -n 2 -m "slow and not docker"

test-docker: .venv/installed-dev  ## Build the image and run the tests that need Docker Engine
	$(BIN)/pytest -m docker

check: .venv/installed-dev  ## Check the format and style of Python and shell code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run *.sh docker/*.sh

bench: .venv/installed-dev  ## Measure speed and memory compared with alternatives: all parts, or PART=...
	$(BIN)/python benchmarks/bench.py $(PART)

readme: .venv/installed-dev  ## Run the README's commands that show output, and update the README
	PYTHONPATH=tests/support:examples/synthetic $(BIN)/python docs/update_readme.py

record: .venv/installed  ## Record the data of a figure: NAME=defaults, fast or interruption
	$(BIN)/python docs/record.py $(NAME)

figures: .venv/installed-dev  ## Draw the figures from the recorded data
	.venv/figures/bin/python docs/figures.py

drill: .venv/installed-dev  ## Kill and resume runs 20 times, or N=..., and compare the results
	$(BIN)/python benchmarks/drill.py $(N)

lock: .venv/bin/uv  ## Lock the packages of pyproject.toml; UPGRADE=package updates that package
	$(LOCK) --group test --output-file requirements.txt
	cat /dev/null $(IMAGE_LOCK) > .venv/image.txt  # uv keeps the versions that it finds in its output file
	$(LOCK) --group image --constraints requirements.txt --output-file .venv/image.txt
	awk -f docker/requirements/split.awk .venv/image.txt

.venv/bin/uv: requirements.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	awk '/^[a-z]/ { is_uv = /^uv==/ } is_uv' requirements.txt > .venv/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@touch $@

.venv/installed: .venv/bin/uv pyproject.toml
	@echo 'Installing into .venv: 7 GB, a few minutes'
	$(INSTALL) --constraints requirements.txt --group laptop
	$(BIN)/uv pip check --python .venv
	@touch $@

.venv/installed-dev: .venv/installed $(IMAGE_LOCK)
	$(INSTALL) -r requirements.txt $(addprefix -r ,$(IMAGE_LOCK))
	$(BIN)/uv pip check --python .venv
	$(PYTHON) -m venv --without-pip .venv/aws  # the AWS CLI needs a different botocore
	$(BIN)/uv pip install --quiet --python .venv/aws awscli==1.45.11
	$(PYTHON) -m venv --without-pip .venv/figures  # torchmetrics would import matplotlib, which takes half a second
	$(BIN)/uv pip install --quiet --python .venv/figures matplotlib==3.11.2
	@touch $@

.PHONY: help train rehearse test test-slow test-docker check bench record figures readme drill lock
