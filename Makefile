# `make demo` and `make test` need nothing but Python 3.11 or newer; the first call sets everything up.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OUT    ?= out/demo
# The lower bounds of setup.cfg: the oldest diffusers, and the oldest of what it is called together with.
OLDEST := "diffusers==0.38.*" "transformers==4.57.*" "peft==0.17.*" "accelerate==1.0.*" \
          "huggingface_hub==0.36.*" "tokenizers==0.22.*" "httpx<1" "httpcore<2"
# One process per core, each with one thread; a file's tests stay together and share what they build.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
ARGS   ?=
# What the oldest releases are tried with: the engine, and the contracts of families and edits.
OLDER  := tests/drivers tests/families tests/edits tests/users tests/attention tests/test_levels.py tests/test_pipelines.py

MAKEFLAGS += --no-print-directory

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-all test-oldest oldest check fix clean

help:
	@echo "make demo      draw three prompts of the embedded world: weak, strong, W2SD, side by side"
	@echo "make test      the tests: CPU, no network, a few minutes (ARGS='-k levels' to choose)"
	@echo "make test-all  also the slow tests, the notebooks and the oldest supported diffusers"
	@echo "make test-oldest  the engine, families and edits with the oldest supported diffusers, laid over the installed"
	@echo "make check     lint, format, types        make fix    lint and format, repaired"

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"w2sdiff needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time, most of it torch."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: $(READY)
	$(BIN)/w2sdiff generate --compare --method w2sd --seed 0 --out $(OUT) \
	    "a red circle" "a blue square left of a yellow triangle" "two green circles"
	@echo "Weak, strong and W2SD side by side, one sheet per prompt: $(OUT)/*-compare-*.png"

test: $(READY)
	$(PYTEST) $(ARGS)

test-slow: $(READY)
	$(PYTEST) -m slow $(ARGS)

# In this order, so that the last line is that of the default tests, which `make test` alone would print.
test-all:
	$(MAKE) test-oldest
	$(MAKE) test-slow
	$(MAKE) test

# The engine against the oldest supported releases, laid over the installed ones for this run only.
# (transformers 4 cannot encode a prompt in float64, with or without us.)
test-oldest oldest: .oldest/.ready
	PYTHONPATH=$(CURDIR)/.oldest $(BIN)/python -c 'import diffusers; assert diffusers.__version__.startswith("0.38."), diffusers'
	PYTHONPATH=$(CURDIR)/.oldest $(PYTEST) -k "not float64" $(OLDER) $(ARGS)

.oldest/.ready: $(READY) Makefile
	rm -rf .oldest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .oldest $(OLDEST)
	@touch $@

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .oldest build out *.egg-info .pytest_cache .mypy_cache .ruff_cache
