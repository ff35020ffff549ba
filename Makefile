# Each target does the set-up it needs and remembers it in stamp files inside the virtual environment.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV ?= .venv
OUT ?= runs/quickstart
JOBS ?= 2

BIN := $(VENV)/bin
# pip shows its progress to people and not to CI logs.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),-q) -c requirements.lock
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# $(call debian,PACKAGES): install Debian packages, or say which ones are missing.
debian = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); \
	else echo "missing: $(1); install it (on Debian: sudo apt-get install $(1)) and repeat the command" >&2; false; fi

.PHONY: help demo test slow check format lock clean browser

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed  ## train, evaluate and diagnose a whole MOPD study, then say where the report is
	@$(BIN)/mopd-diag run quickstart --out "$(OUT)"
	@echo; echo "The report: $(abspath $(OUT))/report.html"

test: check browser  ## check, then the tests (slow ones left out)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --durations 10

slow: $(VENV)/.installed-test browser  ## the slow tests: whole training paths, servers
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

check: $(VENV)/.installed-test  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-test  ## rewrite the code in the one format, with the fixes that are safe
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix --exit-zero .
	$(BIN)/ruff format .

lock: $(VENV)/.installed-test  ## pin what is installed now in requirements.lock
	@{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -viE '^(nvidia|triton|mopd)' | sed -E 's/\+cpu$$//' | sort -f; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:  ## remove the virtual environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(VENV)/.python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mopd-diag needs Python 3.11 or newer; got '$(PYTHON)'. Give one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { $(call debian,python3-venv); }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/.python
	@echo "Installing what mopd-diag itself needs into $(VENV) (once; some minutes, mostly PyTorch)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml requirements.lock | $(VENV)/.python
	@echo "Installing mopd-diag and its test tools into $(VENV) (once; some minutes)"
	@$(INSTALL) -e '.[test,dev]'
	@touch $(VENV)/.installed $@

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { $(call debian,chromium); } \
		|| echo "Going on without it: the browser tests are skipped." >&2
