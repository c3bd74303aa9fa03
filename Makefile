# Every target does its own set-up in .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
RELEASE_STAMP := $(VENV)/.installed-release
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow check format fuzz faults soak bench results regression docs docs-check dist dist-test clean

demo: $(STAMP)
	$(BIN)/gather demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

faults: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m faults --markdown docs/faults.md

soak: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m soak --seconds $(SOAK_SECONDS)

bench: $(STAMP)
	$(BIN)/python -m gather_bench.ratios

# The run of a release, which takes 80 s on two cores, and the drawing of it in the README.
results: $(STAMP)
	$(BIN)/gather bench --ranks 2,4 --codec pickle --codec msgpack --transport shm --transport gloo --rounds 7 \
		--payload metrics --payload dpr_step --payload array:1MiB --payload array:4MiB \
		--json "benchmarks/results/$$($(BIN)/python -c 'import gather_core; print(gather_core.__version__)')-$$(date +%F).json"
	$(BIN)/python -m gather_bench.headline

# Fails where gather-core is no longer much faster than torch's own, both measured in one run.
regression: $(STAMP)
	$(BIN)/python -m gather_bench.regression

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: docs
	$(BIN)/python tests/site_check.py

# Wheel and sdist in dist/, the same bytes from the same commit wherever they are built.
dist: $(STAMP) $(RELEASE_STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	PYTHONPATH=tests $(BIN)/python -m release.contents dist

# The tests of the sdist against the wheel, in a new environment outside the checkout; TESTS="tests/core": only those.
dist-test: dist
	PYTHONPATH=tests $(BIN)/python -m release.against_wheel -- $(TESTS)

clean:
	rm -rf dist site $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gather-core needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[cli]"
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $(DOCS_STAMP)

$(RELEASE_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group release
	touch $(RELEASE_STAMP)
