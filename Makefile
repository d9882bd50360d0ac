# All set-up is here: `make demo` and `make test` work on a fresh machine with Python 3.11+ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-all test-builds cpp lint types docs bench peers clean

help:
	@echo "make demo      environment, then train, eval, export, bench and show on a small world (CPU, offline)"
	@echo "make test      the test suite (under 10 minutes on 2 cores)"
	@echo "make test-all  also the tests marked slow"
	@echo "make test-builds  TensorRT-RTX builds every graph of ViT-B/16 and ViT-L/14, without a GPU (10 minutes)"
	@echo "make cpp       the C++ library: what it needs, gcc and clang builds, its tests plain and under sanitizers (10 minutes)"
	@echo "make docs      docs/api.md, the table of families in docs/models.md, and the site in build/site"
	@echo "make peers     ViT-B/16 against open_clip, torch.compile, token merging and every engine (half an hour)"
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

test-builds: $(STAMP)
	$(BIN)/python -m pytest tests/engines/test_trt_export.py -k vit --timeout 1800 --durations 0

# Four builds: gcc, with the engines of GPUs where nvcc compiles them; clang with AddressSanitizer and UBSan; clang with
# ThreadSanitizer, for the tests with threads; a static library, for a project that links it.
CUDA_CHECK := $(if $(shell command -v nvcc),-DPRTOOL_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90,)
cpp: $(STAMP)
	runtime/cpp/setup.sh $(BIN)/python
	cd runtime/cpp && cmake --preset check-gcc $(CUDA_CHECK) -DPRTOOL_OPENVINO=ON -DOpenVINO_DIR="$$($(abspath $(BIN))/python -c 'import openvino; print(openvino.__path__[0])')/cmake"
	cd runtime/cpp && cmake --preset check-clang
	cd runtime/cpp && cmake --preset check-threads
	for preset in check-gcc check-clang check-threads; do \
	    (cd runtime/cpp && cmake --build --preset $$preset && ctest --test-dir build/$$preset --output-on-failure) || exit 1; \
	done
	for preset in check-gcc check-clang; do \
	    PRTOOL_CPP_BUILD=runtime/cpp/build/$$preset $(BIN)/python -m pytest -n auto -m "not slow" tests/runtime/test_cpp.py tests/runtime/test_cpp_run.py tests/runtime/test_cpp_hostile.py tests/runtime/test_cpp_cache.py tests/runtime/test_cpp_image.py tests/runtime/test_cpp_sizes.py tests/runtime/test_cpp_reducers.py tests/runtime/test_jpeg_scaling.py || exit 1; \
	done
	cd runtime/cpp && cmake --preset static && cmake --build --preset static
	PRTOOL_CPP_BUILD=runtime/cpp/build/static $(BIN)/python -m pytest tests/runtime/test_cpp.py -k elsewhere
	PRTOOL_CPP_BUILD=runtime/cpp/build/check-threads $(BIN)/python -m pytest tests/runtime/test_cpp.py -k "headers or checks"

lint: $(STAMP)
	$(BIN)/ruff check prtool trainer export runtime engines tests benchmarks examples
	$(BIN)/ruff format --check prtool trainer export runtime engines tests benchmarks examples

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)
	$(BIN)/python tests/api_page.py
	PYTHONPATH=. $(BIN)/python tests/families_page.py
	$(BIN)/mkdocs build --strict --site-dir build/site

bench: $(STAMP)
	$(BIN)/prtool train --model ViT-B-16 --phase none -o runs/vit-b-16
	$(BIN)/prtool export runs/vit-b-16 --keep 0.6 -o runs/vit-b-16/bundle
	$(BIN)/prtool bench --bundle runs/vit-b-16/bundle --batch 8 --keep 0.6 --mode fused,split --set budget_s=120 -o benchmarks/results/encoder-vit-b-16-ort

peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers --model ViT-B-16

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo
