# The few verbs of this project. `make help` lists them.
#
# Variables:
#   PYTHON       the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX  an extra package index for PyTorch, for machines without a GPU: give the URL that the install
#                selector on pytorch.org shows for "CPU", and no CUDA build is downloaded
#   PIP_ARGS     anything else for pip, such as `--index-url` of your mirror
#   CHAOS_SECONDS, SOAK_MINUTES, FUZZ_CASES   how long those verbs run, and how many cases each parser gets
#   ARGS         arguments for the server or the benchmarks: make serve ARGS="--env-file my.env"

PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=
ARGS ?=
CHAOS_SECONDS ?= 300
SOAK_MINUTES ?= 60
FUZZ_CASES ?= 12500

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS)
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.installed-dev
MEASURABLE := $(VENV)/.installed-bench
CLIENTS := $(VENV)-clients
INPUTS := pyproject.toml constraints.txt

.PHONY: help serve test test-gpu test-clients chaos soak fuzz check bench docs format clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

serve: $(INSTALLED) ## serve the models of the environment or .env; with no settings, the embedded one
	@exec $(BIN)/python -m supervisor $(ARGS)

test: $(READY) ## the whole test suite, two tests at a time: much of it is waiting
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(READY) ## what a CUDA device must do; where there is none, the same tests on the CPU
	$(BIN)/python -m pytest tests/gpu

test-clients: $(CLIENTS)/.installed ## the real clients of other servers (OpenAI, Cohere, Ollama, LangChain, …) against this one
	EMB_CLIENTS_SERVER_PYTHON="$(CURDIR)/$(BIN)/python" $(CLIENTS)/bin/python -m pytest -c tests/clients/pytest.ini tests/clients

chaos: $(READY) ## everything goes wrong at random for CHAOS_SECONDS (300), every vector is checked; the long fault tests
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) $(ARGS)
	$(BIN)/python -m pytest -m chaos

soak: $(READY) ## a restart a minute under load for SOAK_MINUTES (60): memory, threads and descriptors have to stay flat
	$(BIN)/python -m tests.chaos.soak --minutes $(SOAK_MINUTES) $(ARGS)

fuzz: $(READY) ## a hundred thousand hostile inputs for every parser
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/fuzz

check: $(READY) ## style, types, import rules, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m emb_model_provider.reference --check

bench: $(MEASURABLE) ## measure the server beside its limits: make bench ARGS="--quick --out bench.json"
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY) ## write the generated files: .env.example and the configuration pages
	$(BIN)/python -m emb_model_provider.reference --write

format: $(READY) ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@$(PYTHON) -m venv $(VENV)

# torch first: with it in place no other package makes pip choose a build of its own.
$(INSTALLED): $(INPUTS) | $(BIN)/python
	@echo "installing into $(VENV) (PyTorch is the large part; see TORCH_INDEX in the README for machines without a GPU)"
	@$(PIP) torch
	@$(PIP) -e '.[demo,quantize]'
	@touch $@

$(READY): $(INSTALLED)
	@$(PIP) -e '.[demo,quantize,test,dev]'
	@touch $@

# Of their own: some want older versions of what the server uses.
$(CLIENTS)/.installed: tests/clients/requirements.txt $(READY)
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -q $(PIP_ARGS) -r tests/clients/requirements.txt
	@touch $@

$(MEASURABLE): $(INSTALLED)
	@$(PIP) -e '.[demo,quantize,bench]'
	@touch $@
