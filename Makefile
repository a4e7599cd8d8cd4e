# The commands of this project; `make` alone lists them. `make install PYTHON=python3.12` picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install pretrain test test-slow test-cuda wheel lint clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED)  ## make .venv with all that the tests and tools need, and geo3d in it, editable

# Built without isolation, so that the kernels find torch's headers in the same environment; hence two steps.
$(INSTALLED): pyproject.toml constraints.txt Makefile $(wildcard cuda_ext/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch scikit-build-core cmake ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

pretrain: $(INSTALLED)  ## learn from synthetic rooms for a few minutes; the picture is in the run's folder
	$(BIN)/python tools/pretrain.py

test: $(INSTALLED)  ## the tests that take minutes together
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-cuda: $(INSTALLED)  ## on a machine with a GPU and nvcc: build the CUDA kernels and run their tests
	GEO3D_CUDA=ON $(PIP_INSTALL) --no-build-isolation --no-deps --force-reinstall --editable .
	$(BIN)/python -m pytest -m cuda

wheel: $(INSTALLED)  ## one file in dist/, for every Python 3 on this system
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:  ## remove what was built, and the environment
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
