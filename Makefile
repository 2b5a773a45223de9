# Everything starts here. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run demo test test-llama check fmt bench docs pins clean venv venv-dev

BIN := .venv/bin
WORKERS ?= 2
CODE := schemas actors daemon deploy tests benchmarks
UV_PINS := uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --universal --python-version 3.11

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

run: venv  ## install, start the daemon, do the main job on this machine's own documentation, stay
	@exec $(BIN)/lakehouse demo --stay

test: venv-dev  ## install what the tests need and run them all
	@deploy/prerequisites.sh
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

test-llama: venv-dev  ## the llama.cpp tests on a real llama-server, built at the first call (minutes)
	server=$${LAKEHOUSE_LLAMA_SERVER:-$$(deploy/llama_server.sh)} && \
		LAKEHOUSE_LLAMA_SERVER=$$server $(BIN)/pytest -q tests/contract/test_model_servers_llamacpp.py $(wildcard tests/*/test_llama*.py)

check: venv-dev  ## what to run before a commit: lint, types, unit and contract tests
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -q -m "not slow" tests/unit tests/contract

fmt: venv-dev  ## format the code
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: venv-dev  ## every benchmark, one table a question (long)
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python -m "benchmarks.$$(basename $$file .py)" || exit 1; done

docs: venv  ## write lakehouse.toml and the wiring pictures again from the code
	$(BIN)/python deploy/generate.py

pins:  ## write the requirements*.txt again from pyproject.toml (needs uv)
	$(UV_PINS) pyproject.toml --no-emit-package hnswlib -o requirements.txt
	$(UV_PINS) pyproject.toml --group dev --no-emit-package hnswlib -c requirements.txt -o requirements-dev.txt
	printf 'setuptools\npybind11\n' | $(UV_PINS) - -o requirements-build.txt
	printf 'hnswlib\n' | $(UV_PINS) - --no-binary hnswlib --no-emit-package numpy -c requirements.txt -o requirements-hnswlib.txt

clean:  ## remove .venv and caches; ./data stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@deploy/venv.sh

venv-dev:
	@deploy/venv.sh dev
