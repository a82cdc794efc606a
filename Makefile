# The two commands of the README are `make demo` and `make test`; each sets up first what is missing.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
RUNTIME ?= cpu
VENV := .venv/bin

.PHONY: help setup demo test check constraints clean

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*##/\t/'

setup:           ## virtual environment, packages, Kafka's jars, Java and Redis where there are none
	@[ -n "$(PYTHON)" ] || { echo "setup: no Python 3.11, 3.12 or 3.13 found; install one, or say PYTHON=/path/to/python3.12"; exit 3; }
	@$(PYTHON) tools/setup.py --runtime $(RUNTIME)

demo: setup      ## train, stream, alert, retrain and swap on this machine (ARGS=--stay keeps it up)
	@$(VENV)/narrows demo $(ARGS)

test: check      ## every check, then every test that this machine can run (ARGS='-k name' picks some)
	$(VENV)/python -m pytest $(ARGS)

check: setup     ## lint, types and import edges
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/python -m pytest -q tests/test_layers.py

constraints: setup  ## pin the versions of pyproject.toml again (ARGS=--upgrade takes new ones)
	$(VENV)/python tools/lock_python.py $(ARGS)

clean:           ## remove what was built here; downloads in ~/.cache/narrows stay
	rm -rf .venv .narrows .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
