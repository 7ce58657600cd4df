# One word per act, the same at the desk and in CI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Kind to other work on the cores. Not for the lab: two threads that sleep are slower than one.
demo unit study: export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test install check unit lab study clean

demo: $(STAMP) ## obtain the base, run the first notebook headless, tell its story, save its page
	$(BIN)/python -m mintbook demo

test: ## everything that CI runs, and where the time went
	@.ci/stages install check demo unit

install: $(STAMP) ## .venv with everything that the other words need

check: $(STAMP) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(STAMP) ## the tests
	$(BIN)/python -m mintbook base
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lab: $(STAMP) ## open the first notebook in JupyterLab
	$(BIN)/jupyter lab notebooks/101_first_adapters.ipynb

study: $(STAMP) ## the recorded studies, an hour or more
	$(BIN)/python -m mintbook study people --out mintbook/studies
	$(BIN)/python -m mintbook study succession --out mintbook/studies

clean: ## forget the environment and what was made
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache

# torch comes first, so that no other package asks for another release of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mintbook needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Say make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt 'torch==2.13.0'
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	touch $(STAMP)
