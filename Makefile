# Everything is installed into .venv, one dependency group at a time, when a target first needs it.
#
#     make test                      # with the newest Python found
#     make test PYTHON=python3.12    # with this one (after "make clean")

VENV := .venv
BIN := $(VENV)/bin

# Found by running it: a version manager's shim may be on PATH and know no such version, and Debian's python3 comes
# without the modules that make a virtual environment.
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& { echo $$python; break; }; done)

# Images for containers tend to set it, and then every process that a test starts compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=

# Of the order that the tests run in, which is another each time: "make test SEED=1" repeats one.
SEED ?= default

# What "make free-threaded" runs: whatever has threads meet each other, or a fork.
TESTS ?= $(addprefix tests/test_,$(addsuffix .py,\
	stress locks forks forks_under_load lease checkout outside_the_lock reaper turns leisure interruptions demand broken))

# Where "make serve" opens the example site.
PORT ?= 8000

# Of the mutants: "make mutants SHARE=1/4" tries every fourth of them.
SHARE ?= 1/1

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-quick mutants bench bench-quick counts instructions chaos chaos-quick screenshots pictures pgbouncer chromium lint types docs docs-outputs django-suite tenant-suites matrix free-threaded dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## show what the toolkit changes, with numbers, in two minutes
	@$(BIN)/python -m example_project.demo

serve: $(VENV)/.demo ## open the example site on this machine: PORT=8000
	@$(BIN)/python -m example_project.serve --port=$(PORT)

test: $(VENV)/.suite ## run the tests and measure branch coverage, in 8 minutes
	$(BIN)/coverage erase
	$(BIN)/coverage run -m tests --numprocesses=auto --randomly-seed=$(SEED)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-quick: $(VENV)/.test ## run the tests of the core, for every save, in two minutes
	$(BIN)/python -m pytest --numprocesses=auto --randomly-seed=$(SEED) --ignore=tests/workers --ignore=tests/browser -m "not slow"

mutants: $(VENV)/.test ## break the core line by line, and see a test fall each time
	@$(BIN)/python -m tests.mutants --share $(SHARE)

bench: $(VENV)/.bench pgbouncer ## compare it with other pools and poolers, in half an hour
	@$(BIN)/python -m example_project.benchmarks

bench-quick: $(VENV)/.bench pgbouncer ## the same in 4 minutes, and less exact
	@$(BIN)/python -m example_project.benchmarks --quick

counts: $(VENV)/.bench $(if $(WRITE),pgbouncer) ## hold the bytecodes of queries to those committed; WRITE=1 writes them
	@$(BIN)/python -m example_project.benchmarks.counts $(if $(WRITE),--write,--check)

instructions: $(VENV)/.bench ## count the processor's instructions of a query, in 6 minutes; valgrind has to be there
	@$(BIN)/python -m example_project.benchmarks.instructions

chaos: $(VENV)/.bench pgbouncer ## break servers, networks and workers, and count what is lost, in 3 minutes
	@$(BIN)/python -m example_project.chaos

chaos-quick: $(VENV)/.bench ## the same in 40 seconds, with three of the faults
	@$(BIN)/python -m example_project.chaos --quick

screenshots: $(VENV)/.suite chromium ## take the pictures of pages for the docs, in a minute
	@$(BIN)/python -m tests.browser.pictures

# No Python package has it. Without it, and without the right to install it, the rest is compared.
pgbouncer:
	@PATH="$$PATH:/usr/sbin"; command -v pgbouncer >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
	|| { apt-get update --quiet=2; DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 pgbouncer; } || true

# Nor this one; where it is missing, the tests in a browser are skipped.
chromium:
	@command -v chromedriver >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
	|| { apt-get update --quiet=2; DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 chromium chromium-driver; } || true

lint: $(VENV)/.lint ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The Django plugin of mypy imports the tests' settings, which start a server unless they are given one.
types: $(VENV)/.types ## check the types
	DATABASE_URL=postgresql:// $(BIN)/mypy

docs: $(VENV)/.docs ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

docs-outputs: $(VENV)/.suite ## run what the documentation shows, and write its output there; CHECK=1 compares
	@$(BIN)/python -m tests.outputs $(if $(CHECK),--check) $(NAMES)

pictures: $(VENV)/.suite ## draw the pictures of the documentation, from runs of the real thing
	@$(BIN)/python -m example_project.pictures

django-suite: $(VENV)/.workers ## run Django's own test suite without and with the toolkit
	$(BIN)/python -m tests.django_suite

tenant-suites: $(VENV)/.tenants ## run the suites of django-tenants and django-pgschemas likewise; slow
	$(BIN)/python -m tests.tenant_suites

matrix: $(VENV)/.matrix ## run the tests on every supported Python and Django found
	$(BIN)/tox run -- --randomly-seed=$(SEED)

# psycopg runs in pure Python there. Warnings are each thread's own, which the tests do not expect; the one that is left
# out minds a warning of Python's that comes in a thread's last moments.
free-threaded: ## run the tests of locks, forks and load on a Python without a GIL: PYTHON=python3.14t
	@$(PYTHON) -c 'import sys; sys.exit(getattr(sys, "_is_gil_enabled", lambda: True)() and "Not free-threaded: $(PYTHON)")'
	@test -e $(VENV)-free-threaded || $(PYTHON) -m venv $(VENV)-free-threaded
	@$(VENV)-free-threaded/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(VENV)-free-threaded/bin/uv pip install --quiet --python $(VENV)-free-threaded/bin/python \
		--override tests/free_threaded.txt --editable . --group test
	CONN_HYGIENE_DEBUG=1 $(VENV)-free-threaded/bin/python -X gil=0 -X context_aware_warnings=0 -m pytest --numprocesses=auto \
		--randomly-seed=$(SEED) -k "not closes_unpooled_sessions_as_in_plain_django" $(TESTS)

# The build needs nothing that the group does not have, so that it is not left to what the network gives at that moment.
dist: $(VENV)/.release ## build the wheel and the source distribution into dist, and check them
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation > /dev/null
	@$(BIN)/python -m twine check --strict dist/*

clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV)-free-threaded dist .tox .cache .coverage .coverage.* docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer with venv was found: try make PYTHON=..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# One empty file for each installed group, out of date when pyproject.toml is newer.
$(VENV)/.%: pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing what \"$*\" needs into $(VENV)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group $*
	@touch $@
