# `make demo` and `make test` each work alone, in a fresh clone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := demo
QUESTION ?= Who passes the waiting cars?

.PHONY: help demo install test lint tests docs benchmarks clean

help:
	@echo "make demo        install into $(VENV), run the four tasks on the sample clip, print the tables"
	@echo "make test        install, then all checks and all tests"
	@echo "make docs        build the documentation into docs/_build/html"
	@echo "make benchmarks  measure speed and memory (several minutes)"

demo: $(VENV)/.installed
	$(BIN)/vbkit run tests/data/sample.mp4 --out $(DEMO_OUT) \
	  --task summarisation --task qa --task sentiment --task moderation --question "$(QUESTION)"
	@for table in summarisation summarisation_segments qa sentiment sentiment_videos moderation_videos; do \
	  echo; echo "== $$table"; $(BIN)/vbkit show $(DEMO_OUT) $$table || exit 1; done

test: lint tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

benchmarks: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

install: $(VENV)/.installed

# torch and torchvision come from the same index, because builds of different origin do not fit.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"vbkit needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUT) docs/_build
