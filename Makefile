# `make` alone explains itself. Everything runs in .venv, which `make setup` builds.
.DEFAULT_GOAL := help
.PHONY: help setup setup-system wheelhouse simulate test bench lint format clean

PYTHON     ?= python3
SIMULATION ?= 3_hospitals
RUN_CONFIG ?=
PYTEST_ARGS ?=
CHECKPOINT ?=

# The shell reads them from the environment, so that quotes inside them survive.
export SIMULATION RUN_CONFIG

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
SUDO  := $(if $(filter 0,$(shell id -u)),,sudo)

help: ## Show this help
	@echo "JointDiff. Commands:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'
	@echo
	@echo "  make simulate RUN_CONFIG=\"num-rounds=4 num-labels=24\"   set run-config keys (simulations/3_hospitals/README.md)"
	@echo "  make simulate SIMULATION=3_hospitals                    choose a folder of simulations/"
	@echo "  make test PYTEST_ARGS=\"-k statistics\"                   run some tests; -m slow, -m gpu for the others"

setup: $(STAMP) ## Build .venv and install JointDiff with its development tools (idempotent)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup-system: ## Install what only deployment and browser tests need (Debian, Ubuntu: nginx, chromium)
	$(SUDO) apt-get update
	$(SUDO) apt-get install --yes nginx chromium

simulate: $(STAMP) ## Train three hospitals together and write the report
	@$(BIN)/jointdiff-simulate "$$SIMULATION" --run-config "$$RUN_CONFIG"

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

wheelhouse: $(STAMP) ## Collect wheels with checksums for a site without a registry (TORCH_INDEX=URL: torch from there)
	rm -rf wheelhouse
	$(BIN)/python -m pip wheel --quiet --wheel-dir wheelhouse $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '.[dicom]'
	cd wheelhouse && sha256sum *.whl > SHA256SUMS
	@echo "wheelhouse/: $$(ls wheelhouse/*.whl | wc -l) wheels, $$(du -sh wheelhouse | cut -f1). At the site:"
	@echo "  (cd wheelhouse && sha256sum --check --quiet SHA256SUMS)"
	@echo "  python3 -m venv .venv && .venv/bin/pip install --no-index --find-links wheelhouse 'jointdiff[dicom]'"

bench: $(STAMP) ## Run the short form of all benchmarks: about ten minutes, tables in Markdown
	@$(BIN)/python -m tests.benchmarks.short $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

lint: $(STAMP) ## Check style, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove caches and build leftovers (never a run, never .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
