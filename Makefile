# make demo   a small trained Gemma 4 MoE: planned, quantized, loaded, compared
# make test   formatting, lints, types, and the tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint env golden docs bench clean

demo: env
	$(BIN)/g4convert demo --family moe demo

test: lint
	$(BIN)/python -m pytest -n auto

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

env: .venv/.made

# torch first and alone: the plain name would bring the CUDA build of a newer release on a machine without a GPU.
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# rewrite the golden files and generated docs; read the difference before committing it
golden: env
	G4CONVERT_GOLDEN=write $(BIN)/python -m pytest -q -m golden

# see tests/benchmarks/README.md for what it measures and how long it takes
bench: env
	$(BIN)/python tests/benchmarks/quantize.py bench

clean:
	rm -rf .venv demo bench build *.egg-info
