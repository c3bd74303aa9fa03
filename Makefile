# Every target does its own set-up in .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check format fuzz faults soak bench clean

demo: $(STAMP)
	$(BIN)/gather demo

test: $(STAMP)
	$(BIN)/python -m pytest

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

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gather-core needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[cli]"
	touch $(STAMP)
