# SPDX-License-Identifier: Apache-2.0
# Everything runs in .venv, which the first target that needs it creates; later runs rebuild only what changed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export CMAKE_ARGS ?= -DFGK_BUILD_TESTS=ON
# Arguments for the program that a target runs: make demo ARGS=..., make bench ARGS=...
ARGS ?=

.PHONY: demo test bench lint sanitize arm abi cuda build clean

demo: build
	$(VENV)/bin/fgkernels demo $(ARGS)

test: build
	$(VENV)/bin/ctest --test-dir build/dev --output-on-failure --parallel 2
	$(PY) -m pytest -n 2 tests $(ARGS)

bench: build
	$(VENV)/bin/fgkernels bench $(ARGS)

lint: $(VENV)/.dependencies
	bash tools/lint.sh $(VENV)/bin

# The torch-free C++ tests under ASan + UBSan and under TSan, at every ISA level this machine has.
sanitize: $(VENV)/.dependencies
	bash tools/sanitize.sh $(VENV)/bin

# The torch-free C++ tests cross-compiled for 64-bit Arm, run under qemu.
arm: $(VENV)/.dependencies
	bash tools/arm.sh $(VENV)/bin

# The library as built, loaded and tested in another torch version; ABI_PYTHON names an interpreter that has one.
abi: build
	bash tools/abi.sh $(PY) "$(ABI_PYTHON)"

# All CUDA sources with nvcc, linked with a CUDA build of torch, loaded and audited; needs no GPU. CUDA_PYTHON names an
# interpreter that has such a torch. ARGS=--update writes the audit's results.
cuda: build
	$(PY) tools/cuda.py --python "$(CUDA_PYTHON)" $(ARGS)

build: $(VENV)/.editable
	$(PY) setup.py --quiet build_ext --inplace

$(VENV)/.dependencies: requirements-dev.lock
	bash tools/make_venv.sh $(PYTHON) $(VENV)
	$(PY) -m pip install --requirement requirements-dev.lock
	@touch $@

$(VENV)/.editable: $(VENV)/.dependencies pyproject.toml setup.py
	$(PY) -m pip install --no-build-isolation --no-deps --editable .
	@touch $@

clean:
	rm -rf build dist demo-output compile_commands.json fgkernels/*.so .pytest_cache .ruff_cache .hypothesis
