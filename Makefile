# All set-up is here: `make demo` and `make test` work on a fresh machine with Python 3.11+ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-all lint types bench clean

help:
	@echo "make demo      environment, then train, eval, export, bench and show on a small world (CPU, offline)"
	@echo "make test      the test suite (under 10 minutes on 2 cores)"
	@echo "make test-all  also the tests marked slow"
	@echo "make lint      ruff      make types  mypy strict and pyright      make bench  ViT-B/16 encoder benchmark"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/prtool demo -o demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not gpu" --timeout 1800

lint: $(STAMP)
	$(BIN)/ruff check prtool trainer export runtime engines tests benchmarks examples
	$(BIN)/ruff format --check prtool trainer export runtime engines tests benchmarks examples

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	$(BIN)/prtool train --model ViT-B-16 --phase none -o runs/vit-b-16
	$(BIN)/prtool export runs/vit-b-16 --keep 0.6 -o runs/vit-b-16/bundle
	$(BIN)/python benchmarks/encoder.py runs/vit-b-16/bundle --batch 8 --keep 0.6 --mode fused,split --seconds 120

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo
