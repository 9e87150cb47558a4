# make demo       the whole program on a synthetic corpus: corpus, towers, shards, training, scores, report
# make test       lint, types, import contract, fast tests (default interpreter)
# make slow       tests that take longer, such as every command of the README
# make long       tests that take minutes each: jobs of four processes, every mesh of eight devices
# make test-all   all of these, on every interpreter of PYTHONS that is installed
# make bench      benchmarks that run on a CPU: about an hour, 50 GB of disk
# make beam       the environment with Apache Beam, and its tests
# make lock       resolve the lock of the default interpreter anew

PYTHON ?= python3
PYTHONS ?= python3.11 python3.12
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print(f"{sys.version_info.major}{sys.version_info.minor}")')
LOCK := requirements/py$(VERSION).lock
STAMP := $(shell cat $(LOCK) pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
WORKERS ?= 2
BENCHMARKS ?= train_step generate encoders checkpoint input_pipeline score weights ablations
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 15

.PHONY: demo demo-prefusion test test-all lint types contract pytest slow long bench beam lock clean

demo: $(VENV)/.run-$(STAMP)
	$(BIN)/python -m scripts.demo

demo-prefusion: $(VENV)/.run-$(STAMP)
	$(BIN)/python -m scripts.demo --prefusion none attention qformer

test: lint types contract pytest

lint: $(VENV)/.dev-$(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x launch/*.sh benchmarks/*.sh launch/*.sbatch launch/gke/*.sh launch/xla/*.env tests/launch/bin/* .ci/run
	$(BIN)/yamllint --strict .yamllint launch configs

types: $(VENV)/.dev-$(STAMP)
	$(BIN)/mypy

contract: $(VENV)/.dev-$(STAMP)
	$(BIN)/lint-imports --no-cache

pytest: $(VENV)/.dev-$(STAMP)
	$(PYTEST) -m "not slow and not long and not gpu"

slow: $(VENV)/.dev-$(STAMP)
	$(PYTEST) -m "slow and not gpu"

long: $(VENV)/.dev-$(STAMP)
	$(PYTEST) -m "long and not gpu"

test-all:
	set -e; for python in $(PYTHONS); do \
	  if command -v $$python >/dev/null && $$python -c 'import pip' 2>/dev/null; then \
	    $(MAKE) test slow long PYTHON=$$python VENV=.venv-$$python; \
	  else echo "$$python is not installed: skipped"; fi; done

bench: $(VENV)/.dev-$(STAMP)
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; JAX_PLATFORMS=cpu $(BIN)/python benchmarks/$$name.py; done

# The environment is built once per lock: what `make demo` needs first, the tools of `make test` on top. It asks
# nothing of the system but an interpreter with pip (not even Debian's python3-venv).
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.run-$(STAMP): | $(VENV)/bin/python
	@test -f $(LOCK) || { echo "no lock for this Python ($(LOCK)); set PYTHON= to 3.11 or 3.12"; exit 1; }
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-compile -c $(LOCK) -e .
	@rm -f $(VENV)/.run-* $(VENV)/.dev-*; touch $@

$(VENV)/.dev-$(STAMP): $(VENV)/.run-$(STAMP)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-compile -c $(LOCK) -e '.[dev,torch,faces]'
	@touch $@

beam:
	test -x .venv-beam/bin/python || $(PYTHON) -m venv --without-pip .venv-beam
	$(PYTHON) -m pip --python .venv-beam/bin/python install --quiet --no-compile -c requirements/py$(VERSION)-beam.lock -e '.[beam,faces]' pytest
	.venv-beam/bin/python -m pytest -q tests/data_prep/test_beam.py

lock:
	rm -rf .venv-lock && $(PYTHON) -m venv --without-pip .venv-lock
	$(PYTHON) -m pip --python .venv-lock/bin/python install --quiet -e '.[dev,torch,faces]'
	$(PYTHON) -m pip --python .venv-lock/bin/python freeze --exclude-editable | sed 's/+cpu$$//' > $(LOCK)
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-* .cache runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
