# One set of commands for people and CI. It needs python3 with pip and venv, and make.
# The virtual environment is .venv; another one: make VENV=path ...

VENV ?= .venv
PROTOS_VENV ?= .venv-protos
TRITON_VENV ?= .venv-triton
HUB_VENV ?= .venv-hub
DEPLOY_VENV ?= .venv-deploy
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
INSTALL := -m pip install --quiet --disable-pip-version-check
COVERAGE_GATE := 95

SETUP := $(VENV)/.upt-installed
KERNEL := server/upt_server/native/kernel.cpp $(wildcard server/upt_server/native/*.h)
PROTOS_SETUP := $(PROTOS_VENV)/.upt-installed
TRITON_SETUP := $(TRITON_VENV)/.upt-installed
HUB_SETUP := $(HUB_VENV)/.upt-installed
DEPLOY_SETUP := $(DEPLOY_VENV)/.upt-installed
DOCS_SETUP := $(DOCS_VENV)/.upt-installed
TYPESCRIPT := clients/typescript
TYPESCRIPT_SETUP := $(TYPESCRIPT)/dist/.upt-built
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help setup check fix test test-gpu protos docs site bench results demo clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(SETUP) ## Install upt and all it is tested with into the virtual environment

check: $(SETUP) $(PROTOS_SETUP) $(DOCS_SETUP) ## Check format, lint, types, import arrows, generated stubs and the documents' links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PROTOS_VENV)/bin/python protos/generate.py --check
	$(PYTHON) docs/generate_docs.py --check
	$(DOCS_VENV)/bin/python docs/build_site.py

fix: $(SETUP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# two processes, a file's tests in one of them; and one thread each: on busy cores several wait for
# each other (twice as long), on idle ones they gain nothing
test: $(SETUP) $(TRITON_SETUP) $(HUB_SETUP) $(DEPLOY_SETUP) $(TYPESCRIPT_SETUP) ## Run all tests; the branch coverage of zoo and server is gated
	TRITON_VENV=$(TRITON_VENV) HUB_VENV=$(HUB_VENV) DEPLOY_VENV=$(DEPLOY_VENV) OMP_NUM_THREADS=1 \
	  $(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile --cov --cov-report=
	$(BIN)/coverage report --include='zoo/*,server/*' --fail-under=$(COVERAGE_GATE)

test-gpu: $(SETUP) ## Run the tests that need a GPU
	$(PYTHON) -m pytest -q -m gpu

protos: $(PROTOS_SETUP) ## Generate the stubs from the .proto files
	$(PROTOS_VENV)/bin/python protos/generate.py

docs: $(SETUP) ## Write the tables of the documents that the code knows
	$(PYTHON) docs/generate_docs.py

site: $(DOCS_SETUP) ## Build the documents as a site in build/site; a broken link is an error
	$(DOCS_VENV)/bin/python docs/build_site.py

bench: $(SETUP) ## Measure the engine beside transformers; BENCH=--quick: the main cells in ten minutes
	$(PYTHON) benchmarks/engine.py $(BENCH)

results: $(SETUP) ## Render the tables and plots of docs/results.md from the run records
	$(PYTHON) training/render_page.py docs/results.md

demo: $(SETUP) ## Show upt at work on this machine
	$(PYTHON) demo.py

clean: ## Remove caches and results of checks; the virtual environment stays
	rm -rf $(PROTOS_VENV) $(TRITON_VENV) $(HUB_VENV) $(DEPLOY_VENV) $(DOCS_VENV) build dist .coverage .coverage.* \
	  $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist $(TYPESCRIPT)/src/generated .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# torch comes first and alone: a package that asks for any torch then finds this one
$(SETUP): pyproject.toml constraints.txt hatch_build.py $(KERNEL)
	@echo "Installing upt, torch first, into $(VENV): 2 GB, some minutes without a word"
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) $(INSTALL) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PYTHON) $(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

$(PROTOS_SETUP): protos/requirements.txt
	test -x $(PROTOS_VENV)/bin/python || python3 -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python $(INSTALL) -r protos/requirements.txt
	touch $@

$(TRITON_SETUP): tests/e2e/requirements-triton.txt
	test -x $(TRITON_VENV)/bin/python || python3 -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python $(INSTALL) -r tests/e2e/requirements-triton.txt
	touch $@

$(HUB_SETUP): tests/zoo/requirements-hub.txt
	test -x $(HUB_VENV)/bin/python || python3 -m venv $(HUB_VENV)
	$(HUB_VENV)/bin/python $(INSTALL) -r tests/zoo/requirements-hub.txt
	touch $@

$(DEPLOY_SETUP): tests/deploy/requirements.txt
	test -x $(DEPLOY_VENV)/bin/python || python3 -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python $(INSTALL) -r tests/deploy/requirements.txt
	touch $@

# where there is no npm the test of the example is skipped; no script of a package is run
$(TYPESCRIPT_SETUP): $(addprefix $(TYPESCRIPT)/,package.json package-lock.json tsconfig.json src/example.ts) protos/upt_protos/v1/inference.proto
	! command -v npm > /dev/null || \
	  { cd $(TYPESCRIPT) && npm ci --ignore-scripts --silent && npm run --silent build > /dev/null; }
	mkdir -p $(@D) && touch $@

$(DOCS_SETUP): docs/requirements.txt
	test -x $(DOCS_VENV)/bin/python || python3 -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python $(INSTALL) -r docs/requirements.txt
	touch $@
