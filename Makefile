# `make demo` and `make test` do all the set-up: they create .venv and install what setup.cfg names.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: help install demo test slow lint docs benchmark clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP) ## create .venv and install

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev,weights]'
	@$(MAKE) --no-print-directory learn2learn
	@touch $@

# learn2learn is optional. Its shipped C files are stale, so they are built again (build_ext); its dependency qpth pins
# numpy<2, so it goes in without dependencies; gym and requests are what it imports at start.
.PHONY: learn2learn
learn2learn:
	@if $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
	      --config-settings=--build-option=build_ext learn2learn==0.2.0 >$(VENV)/learn2learn.log 2>&1 \
	    && $(RUN) -m pip install --quiet --disable-pip-version-check gym requests >>$(VENV)/learn2learn.log 2>&1; \
	  then echo "learn2learn 0.2.0 installed"; \
	  else echo "learn2learn could not be built here (see $(VENV)/learn2learn.log); going on without it, nothing else needs it"; fi

demo: install    ## train on the embedded data set, evaluate, write runs/demo
	$(RUN) experiments/demo.py --out runs/demo

# Two workers with one thread each: twice as fast as two threads, whose waiting costs more than small tensors gain. Each
# begins with half of the files, so that what a file prepares for its tests is mostly prepared once, and helps the other.
test: install    ## quick test suite, offline
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

slow: install    ## the tests that take minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m slow

lint: install    ## style, likely mistakes, which room imports which, types
	$(RUN) -m ruff check .
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy

# NO_MKDOCS_2_WARNING silences an advertisement, no warning about these pages: those are errors (--strict).
docs: $(VENV)/.docs ## the documentation as pages in build/site; nothing is executed or fetched
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

benchmark: install ## speed of everything, beside floors and other libraries (a few minutes)
	$(RUN) benchmarks/suite.py --quick

clean:           ## remove the environment and caches, keep runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
