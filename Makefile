# ENV=venv (default): a .venv of its own with the pinned packages of requirements.lock, made with PYTHON.
# ENV=none: PYTHON as it is, with the packages that it has; nothing is installed and no network is used.
ENV ?= venv
PYTHON ?= python3
# What to compile; setup.py says what each word means.
MASKFEAT_BUILD ?= auto
export MASKFEAT_BUILD
# Architectures of the CUDA kernels of a build in place; a wheel has them all.
MASKFEAT_CUDA_ARCHS ?= native

ifeq ($(ENV),venv)
PY := .venv/bin/python
INSTALLED := .venv/installed
# A file of tests stays in one process, which builds a program or a table once. A process that dies ends the run: another
# one would only run into the same test.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
else ifeq ($(ENV),none)
PY := $(PYTHON)
INSTALLED :=
PARALLEL :=
else
$(error ENV must be venv or none, got $(ENV))
endif

# More options for a run: make test PYTEST="-k window", make bench BENCH=--quick.
PYTEST ?=
BENCH ?=
ARCH ?= 90
CXX_FILES := $(foreach folder,csrc csrc/* csrc/*/*,$(wildcard $(folder)/*.h $(folder)/*.cpp $(folder)/*.cu))
CXX_TESTS := $(foreach suffix,h cpp cu,$(wildcard tests/gpu/cuda_on_host/*.$(suffix)))
CLANG_FORMAT := $(PY) -c "import clang_format; clang_format.clang_format()"

.DEFAULT_GOAL := help
.PHONY: help setup demo experiment photographs test test-slow bench results docs gpu gpu-carry lint format wheel wheels sdist \
  check-tag checksums clean FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Options: ENV=venv|none  PYTHON=python3  MASKFEAT_BUILD=auto|cuda|cpu|none  PYTEST="-k name"  BENCH=--quick'

setup: build/done  ## install the pinned packages and build the extension

demo: setup  ## HOG of some photographs, a table and a picture; then a ViT learns to predict it for two minutes
	$(PY) -m examples.demo

experiment: setup  ## HOG, pixels or no pre-training: half an hour on one core, writes examples/results/
	$(PY) -m examples.experiment

# Freed memory stays with the process, as every step asks for the same again.
photographs: export MALLOC_MMAP_THRESHOLD_ = 1073741824
photographs: export MALLOC_TRIM_THRESHOLD_ = 4294967296
photographs: setup  ## the same on photographs, eight core-hours that any call goes on with: DATA=folder OUT=folder
	$(PY) -m examples.photographs --data "$(DATA)" --out "$(OUT)" $(PHOTOGRAPHS)

# A test that hangs ends the run, with its name and its stack. A pytest before 9, which has no such option, prints the
# stack alone.
LIMIT := -o faulthandler_exit_on_timeout=true

test: setup  ## run the tests
	$(PY) -m pytest $(PARALLEL) $(LIMIT) $(PYTEST)

test-slow: setup  ## run the tests that are marked slow
	$(PY) -m pytest -m slow $(PARALLEL) $(LIMIT) $(PYTEST)

bench: setup  ## measure ours against its rivals and write benchmarks/results/
	$(PY) -m benchmarks $(BENCH)

results: setup  ## bring the table in README.md up to date with benchmarks/results/
	$(PY) -m benchmarks results

# The documents keep their places, so that links between them hold.
docs: $(INSTALLED)  ## build the site of all documents into build/site
	rm -rf build/docs && mkdir -p build/docs
	git ls-files '*.md' '*.jpg' '*.png' '*.svg' '*.css' 'benchmarks/results/*.json' 'examples/**/*.json' \
	  | tar --create --files-from=- | tar --extract --directory=build/docs
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=docs/site $(PY) -m mkdocs build --quiet

gpu:  ## on a machine with a GPU: calls, benchmarks and training in 4 minutes, tests and the rest in 7 (GPU=--dry-run)
	$(PYTHON) -m benchmarks.gpu $(GPU)

# Kernels and their programs for compute-sanitizer, where the machine with the GPU has another Python and little time.
CARRY := build/gpu-carry
gpu-carry: $(INSTALLED)  ## build beforehand into build/gpu-carry what make gpu would build, for ARCH=90 (H100, H200)
	@mkdir -p $(CARRY)
	MASKFEAT_BUILD=cuda MASKFEAT_CUDA_ARCHS=$(ARCH) $(PY) setup.py --quiet build_ext --force \
	  --build-lib $(CARRY)/lib --build-temp $(CARRY)/temp
	mv $(CARRY)/lib/maskfeat_kernels/_torch_ops.so $(CARRY)
	rm -r $(CARRY)/lib $(CARRY)/temp
	$(PY) tests/gpu/cuda_program.py $(CARRY) sm_$(ARCH)
	@du -sh $(CARRY)

lint: $(INSTALLED)  ## check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES) $(CXX_TESTS)

format: $(INSTALLED)  ## put the sources into the format that lint asks for
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(CXX_FILES) $(CXX_TESTS)

# A wheel is of one kind whatever machine builds it. On Linux auditwheel names the oldest C library that the wheel runs with. It leaves out torch's libraries, which the
# installed torch brings.
wheel: export MASKFEAT_BUILD := $(subst auto,cpu,$(MASKFEAT_BUILD))
wheel: export MASKFEAT_CUDA_ARCHS := $(subst native,all,$(MASKFEAT_CUDA_ARCHS))
wheel: $(INSTALLED)  ## build into dist/ a wheel that needs no compiler: MASKFEAT_BUILD=cpu, or cuda
	@rm -rf build/lib* build/bdist* build/wheel
	$(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
ifeq ($(shell uname),Linux)
	PATH="$(dir $(PY)):$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --wheel-dir dist build/wheel/*.whl
else
	mkdir -p dist && mv build/wheel/*.whl dist
endif
	@ls -l dist

wheels:  ## build CPU wheels of every Python in the containers of manylinux_2_28, or on macOS: needs pipx (and Docker)
	pipx run cibuildwheel==4.3.5 --output-dir dist

sdist: $(INSTALLED)  ## pack the sources into dist/
	MASKFEAT_BUILD=none $(PY) setup.py --quiet sdist --dist-dir dist

check-tag:  ## fail where TAG=v0.1.0 is not of this version
	@grep -qx '__version__ = "$(TAG:v%=%)"' maskfeat_kernels/__init__.py || { echo "$(TAG) is not the version of maskfeat_kernels/__init__.py"; exit 1; }

checksums:  ## write dist/SHA256SUMS
	cd dist && rm -f SHA256SUMS && sha256sum -- * > ../SHA256SUMS && mv ../SHA256SUMS .

clean:  ## remove all that was built, but not .venv
	rm -rf build demo dist *.egg-info maskfeat_kernels/*.so .pytest_cache .ruff_cache .mypy_cache
	find . -name .venv -prune -o -name __pycache__ -type d -print | xargs rm -rf

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: PYTHON=...")'
	@echo "== making .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv .venv
	@echo "== installing the packages of requirements.lock (torch is large)"
	$(PY) -m pip install --requirement requirements.lock
	@echo "== linking this folder into .venv"
	MASKFEAT_BUILD=none $(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

build/done: build/options requirements.lock setup.py $(CXX_FILES)
	@echo "== building the extension (MASKFEAT_BUILD=$(MASKFEAT_BUILD))"
	@rm -f maskfeat_kernels/*.so
	MASKFEAT_CUDA_ARCHS="$(MASKFEAT_CUDA_ARCHS)" $(PY) setup.py --quiet build_ext --inplace
	@touch $@

# Rewritten only when the words change, so that another interpreter or another choice builds again.
build/options: FORCE | $(INSTALLED)
	@mkdir -p build
	@words="$(PY) $$($(PY) --version), MASKFEAT_BUILD=$(MASKFEAT_BUILD) MASKFEAT_CUDA_ARCHS=$(MASKFEAT_CUDA_ARCHS) CXXFLAGS=$(CXXFLAGS)"; \
	echo "$$words" | cmp -s - $@ || echo "$$words" > $@
