# `make demo` and `make test` do all the set-up on a bare machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo fleet-demo test lint bench bench-fleet guarantees conformance fuzz lab lab-down lab-test clean

clean: ## remove what the build made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
