# The commands of this project; `make` alone lists them. `make install PYTHON=python3.12` picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# Bytecode is made below, of what is imported, or of all by several processes: pip would do it of all by itself.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt Makefile $(wildcard cuda_ext/*)

# What geo3d and the extra `synthetic` ask for, in pyproject.toml.
REQUIREMENTS = $(BIN)/python -c "import importlib, sys; \
	toml = importlib.import_module('tomllib' if sys.version_info >= (3, 11) else 'tomli'); \
	project = toml.load(open('pyproject.toml', 'rb'))['project']; \
	print(*project['dependencies'], *project['optional-dependencies']['synthetic'])"
# Python imports them faster from here on, even where it is told to write no bytecode by itself.
IMPORT_ONCE = PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import embreex.rtcore_scene, lightning_fabric, \
	matplotlib.pyplot, PIL.Image, rich.progress, safetensors.torch, torch.utils.data, torch._dynamo, trimesh, tyro, yaml"

.DEFAULT_GOAL := help
.PHONY: help install install-dev pretrain test test-slow test-cuda test-torch wheel docs lint clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED)  ## make .venv with what the commands need, and geo3d in it, editable; kernels for this processor

install-dev: $(INSTALLED_DEV)  ## the same with what tests and tools need too, and kernels for every processor

# Built without isolation, so that the kernels find torch's headers in the same environment; hence two steps.
$(BASE): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch scikit-build-core cmake ninja
	touch $@

# The kernels are compiled while the rest is fetched.
$(INSTALLED): $(BASE) $(SOURCES)
	GEO3D_CPU=NATIVE $(PIP_INSTALL) --no-build-isolation --no-deps --editable . & kernels=$$!; \
	$(PIP_INSTALL) $$($(REQUIREMENTS)) && $(IMPORT_ONCE); rest=$$?; wait $$kernels && exit $$rest
	touch $@

$(INSTALLED_DEV): $(BASE) $(SOURCES)
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # torch holds files for other Pythons
	touch $(INSTALLED) $@

pretrain: $(INSTALLED)  ## learn from synthetic rooms for a few minutes; the picture is in the run's folder
	$(BIN)/python tools/pretrain.py

# Processes that run tests side by side, a file in one of them; small tests use a second core better than threads do.
JOBS ?= 2
test: $(INSTALLED_DEV)  ## the tests that take minutes together; `make test JOBS=8` where there are more cores
	OMP_NUM_THREADS=1 GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED_DEV)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-cuda: $(INSTALLED_DEV)  ## on a machine with a GPU and nvcc: build the CUDA kernels and run their tests
	GEO3D_CUDA=ON $(PIP_INSTALL) --no-build-isolation --no-deps --force-reinstall --editable .
	$(BIN)/python -m pytest -m cuda

# Its environment has the wheel that was built against the torch of .venv, and lies in build/.
VERSION ?= 2.10.0
OTHER := build/torch-$(VERSION)

test-torch: wheel  ## operators, layers and models with another torch: `make test-torch VERSION=2.10.0`
	rm -rf $(OTHER)
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet torch==$(VERSION) "$$(echo dist/geo3d-*.whl)[all,test]"
	cd $(OTHER) && bin/python -c "import torch, geo3d; print('torch', torch.__version__, 'geo3d', geo3d.__file__)"
	cd $(OTHER) && bin/pytest -c ../../pyproject.toml --rootdir ../.. $(patsubst %,../../tests/%,ops nn models)
	cd $(OTHER) && bin/geo3d pretrain croco --train.steps 20 --out run

wheel: $(INSTALLED_DEV)  ## one file in dist/, for every Python 3 on this system
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

docs: $(INSTALLED_DEV)  ## the documentation as pages, in build/docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo build/docs/index.html

lint: $(INSTALLED_DEV)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:  ## remove what was built, and the environment
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
