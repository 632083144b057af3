# Two commands for a bare machine with Python 3.11, pip and make:
#     make demo     installs into .venv and does the main job on real dialogue
#     make test     installs into .venv and runs the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo test test-all test-slow test-install test-latest test-oldest browser check format lint types site coverage mutation lock clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## install into .venv, nothing else

demo: $(READY)  ## the main job on the shipped data; ends with tables and a report
	$(BIN)/flatgd run recipes/demo.yaml

test: $(READY)  ## the tests without the slow ones
	$(BIN)/pytest -n auto --dist loadscope -m "not slow"

test-all: $(READY) browser  ## all tests, also of model families, several processes and a browser
	$(BIN)/pytest -n auto --dist loadscope

test-slow: $(READY) browser  ## the slow tests alone; with `make test` they are all
	$(BIN)/pytest -n auto --dist loadscope -m slow

test-install: $(READY)  ## the demo from the wheel, trackers and TRL's trainers, in an empty environment with pip's versions
	rm -rf build/install && mkdir -p build/install/empty
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w build/install .
	$(PYTHON) -m venv build/install/venv
	build/install/venv/bin/pip install --quiet -r requirements-torch.txt build/install/*.whl
	cd build/install/empty && ../venv/bin/flatgd --version && ../venv/bin/flatgd demo
	build/install/venv/bin/pip install --quiet pytest tensorboard wandb trl
	build/install/venv/bin/pytest -m slow tests/runtime/test_trackers.py tests/training/test_trl.py

browser: $(READY)  ## Chromium for the tests of the pages, where it can be installed
	$(BIN)/python tests/support/chromium.py

coverage: $(READY) browser  ## all tests; shows what they cover, and the messages that no test has seen
	$(BIN)/pytest -n auto --dist loadscope --cov=flatgd --cov-report=term:skip-covered --cov-report=json
	$(BIN)/python scripts/unseen.py

mutation: $(READY)  ## change losses/ and flatness/ in a thousand places: do the tests notice?
	$(BIN)/pip install --quiet "mutmut>=3.8"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

check: format lint types site test  ## format, lint, types, site and tests: what a change must pass

format: $(READY)  ## fail where ruff would change the format
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

site: $(READY)  ## the pages of docs/ and the API into build/site; any broken link stops it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# One set of versions for users and CI. torch is installed first and by version alone, because its
# build differs by platform. Every other file is checked against its SHA-256 in the lock.
$(READY): pyproject.toml requirements-torch.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("flatgd needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-torch.txt
	$(BIN)/pip install --quiet --require-hashes --no-deps --no-compile -r requirements.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; some packages have syntax of newer Pythons
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	touch $(READY)

RESOLVE := $(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --extra hub --constraint requirements-torch.txt --no-emit-package torch --quiet

lock: $(READY)  ## resolve requirements.lock again: Python 3.11 to 3.14 on Linux, macOS, Windows
	$(RESOLVE) --universal --python-version 3.11 --upgrade --generate-hashes --custom-compile-command "make lock" -o requirements.lock
	for python in 3.11 3.12 3.13 3.14; do \
		for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin x86_64-pc-windows-msvc; do \
			$(BIN)/uv pip compile requirements.lock --quiet --no-deps --only-binary :all: \
				--python-version $$python --python-platform $$platform -o /dev/null || exit 1; \
		done; \
	done

# The ends of the ranges in pyproject.toml. torch stays as pinned.
test-latest: browser  ## all tests on the newest versions that pyproject.toml admits; lists warnings
	$(MAKE) .range RANGE=latest RESOLUTION=highest
	.venv-latest/bin/pytest -n auto --dist loadscope -W default

test-oldest: browser  ## all tests on the oldest versions that pyproject.toml admits
	$(MAKE) .range RANGE=oldest RESOLUTION=lowest-direct
	.venv-oldest/bin/pytest -n auto --dist loadscope -W default

.range: $(READY)
	$(PYTHON) -m venv .venv-$(RANGE)
	$(RESOLVE) --resolution $(RESOLUTION) -o .venv-$(RANGE)/requirements.txt
	.venv-$(RANGE)/bin/pip install --quiet -r requirements-torch.txt
	.venv-$(RANGE)/bin/pip install --quiet --no-deps -r .venv-$(RANGE)/requirements.txt
	.venv-$(RANGE)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	.venv-$(RANGE)/bin/pip check

clean:  ## remove the environment and the runs
	rm -rf $(VENV) .venv-latest .venv-oldest runs
