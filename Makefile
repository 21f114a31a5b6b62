# `make demo` and `make test` do all the set-up: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint test-slow pages pictures rendering bench clean
demo: $(STAMP)
	$(BIN)/python cli.py demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m slow

pages: $(STAMP)
	for page in api cli losses parts; do $(BIN)/python -m docs.generate_$$page || exit 1; done

pictures: $(STAMP)
	$(BIN)/python -m docs.pictures

rendering: $(STAMP)
	$(BIN)/python -m docs.check_rendering

bench: $(STAMP)
	$(BIN)/python -m bench

# Installed once; again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo-out build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache
