PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install check test

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[sidecar,control-plane,demo,dev]'
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install
	$(BIN)/pytest -m "not debian and not envoy and not root and not soak"
