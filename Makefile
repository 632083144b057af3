# Two commands on a bare machine with Python 3.11, pip and make:
#     make demo     sets everything up and does the main job on real dialogue
#     make test     sets everything up and passes the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo test browser check format lint types coverage mutation locked lock clean

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## set everything up in .venv, no more

demo: $(READY)  ## the main job on the shipped data, ends with a table and a report
	$(BIN)/flatgd run recipes/demo.yaml

test: $(READY) browser  ## all tests
	$(BIN)/pytest -n auto --dist loadscope

browser: $(READY)  ## Chromium for the tests of the pages, where it can be installed
	$(BIN)/python tests/chromium.py

coverage: $(READY) browser  ## all tests, what they cover, and the messages that none has seen
	$(BIN)/pytest -n auto --dist loadscope --cov=flatgd --cov-report=term:skip-covered --cov-report=json
	$(BIN)/python scripts/unseen.py

mutation: $(READY)  ## changes losses/ and flatness/ in a thousand places: do the tests notice?
	$(BIN)/pip install --quiet "mutmut>=3.8"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

check: format lint types test  ## the gate: format, lint, types, tests

format: $(READY)  ## fails where ruff would format otherwise
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# constrained: a range that admits a newer torch pulls gigabytes of CUDA
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("flatgd needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

# what CI stands on: every file of every dependency by its SHA-256. torch is the CPU's, which needs
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu where pip does not find it
locked:  ## like install, with the very files of requirements.lock (Linux x86-64, Python 3.11)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --no-deps --no-compile -r requirements.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; some packages hold newer syntax
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	touch $(READY)

lock: $(READY)  ## write requirements.lock anew
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev -c constraints.txt --python-version 3.11 \
		--generate-hashes --custom-compile-command "make lock" $(UV_ARGS) -o requirements.lock --quiet

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs
