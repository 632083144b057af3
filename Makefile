# Two commands on a bare machine with Python 3.11, pip and make:
#     make demo     sets everything up and does the main job on real dialogue
#     make test     sets everything up and passes the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo test check format lint types clean

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## set everything up in .venv, no more

demo: $(READY)  ## the main job on the shipped data, ends with a table and a report
	$(BIN)/flatgd run recipes/demo.yaml

test: $(READY)  ## all tests
	$(BIN)/pytest -n auto --dist loadscope

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

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs
