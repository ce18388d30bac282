# `make run` and `make test` are all that a fresh clone needs; each sets up what is missing.
.DEFAULT_GOAL := help
.PHONY: help setup lock outdated run test coverage lint docs bench crash soak clean

python := .venv/bin/python
# How many test files run at once: most of their time is waiting.
processes := 3
# The tests whose coverage counts.
measured := tests/unit tests/contract

help:  ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# PYTHON=python3.13 chooses the interpreter of .venv.
setup:  ## install what is missing: Debian's packages (as root), .venv
	@.ci/setup test

lock: setup  ## pin again what pyproject.toml asks for (UPGRADE=1: the newest that it allows)
	@.ci/lock requirements $(if $(UPGRADE),--upgrade)

outdated: setup  ## which pins have newer versions, and whether these do
	@.ci/outdated

run:  ## the whole way once: a share from a message to files over NFS, and back to nothing
	@.ci/setup run
	@$(python) -m tests.story

test: setup  ## all tests, with real Redis, PostgreSQL and workers
	$(python) -m pytest $(measured) -n $(processes) --dist loadfile \
	    --cov --cov-report= --cov-fail-under=0
	$(python) -m pytest tests --ignore tests/crash $(measured:%=--ignore %) \
	    -n $(processes) --dist loadfile
	$(python) -m pytest tests/crash -m "not whole"

coverage:  ## what the unit and contract tests of the last `make test` ran, against the least allowed
	.venv/bin/coverage report

# Both parts are done, whatever the first one finds.
crash: setup  ## kill everything everywhere (QUICK=1: a fair sample of it)
ifdef QUICK
	$(python) -m tests.crash.matrix --quick
else
	$(python) -m tests.crash.matrix; matrix=$$?; \
	SHAREWRIGHT_OUTAGE_SECONDS=60 SHAREWRIGHT_STALLED=5000 $(python) -m pytest tests/crash \
	    && exit $$matrix
endif

soak: setup  ## faults at random under load (MINUTES=30, SEED=n to have the same ones again)
	$(python) -m tests.crash.outages.soak $(or $(MINUTES),30) $(SEED)

bench: setup  ## what a share costs; the figures go to benchmarks/latest.json
	$(python) -m benchmarks.run

lint: setup  ## ruff, mypy, import contracts, models against migrations, spelling, lengths, words, layout
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy --explicit-package-bases --follow-imports=silent tests/support tests/contract
	.venv/bin/lint-imports
	.venv/bin/sharewright db check
	.venv/bin/typos
	$(python) .ci/lengths
	$(python) .ci/words
	$(python) .ci/layout

docs:  ## the API reference of docs/api, as HTML in build/api; a warning is an error
	@.ci/setup docs
	$(python) -m sphinx -q -W --keep-going -E -b html docs/api build/api

clean:  ## remove what was made here (not Debian's packages)
	rm -rf .venv .run build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache .hypothesis benchmarks/latest.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
