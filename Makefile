# make train   set up, then the main job (ARGS="..." are flags of train.py)
# make test    set up, then every test that takes less than minutes
# make check   lint (format, lint, types) and the fast tests: no compiled kernel, no training, no program, one case each
# make docs    the pages as a site, into build/site
# make help    all targets

VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
BENCH_READY = $(VENV)/.ready-bench
JOBS ?= 2
# a file's tests run in one process, so that a kernel is compiled once, and tests/conftest.py orders
# the files; bytecode is kept, so that a test is read once
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile \
	--no-loadscope-reorder
# what measures in minutes; the other scripts train, soak or kill for hours and have commands of their own
BENCHES ?= benchmarks/speed.py benchmarks/env_speed.py benchmarks/growth.py
QUIET = --quiet --disable-pip-version-check
# what is tested with the lowest releases: the command line, files, and SB3's ways
LOWEST ?= tests/cli tests/agents/files tests/agents/sb3/test_save_load.py
# a training of seconds, in a fresh folder
SMOKE = palimpsest train --env Palimpsest/TMaze-v0 --memory gru --num-envs 4 --total-timesteps 1024 --run-dir $$(mktemp -d)/run
# sets $$python to the first of these that is new enough, in the shell line that follows
FIND_PYTHON = python=; for name in python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed; install it and run make again" >&2; exit 2; fi

.DEFAULT_GOAL = help
.PHONY: help setup train test test-fast lint check test-slow test-lowest bench docs package clean

help:  ## show these lines
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY)  ## make .venv and install what constraints.txt says, if that changed

train: $(READY)  ## train on the main job, or as ARGS="..." says; see train.py --help
	$(BIN)/python train.py $(ARGS)

test: $(READY)  ## every test but those that train for minutes
	$(PYTEST) -m "not slow"

test-fast: $(READY)  ## of tests that need no compiled kernel, no training and no program, one case each
	$(PYTEST) -m "not slow and not learning and not programs" --no-machine-code --most-cases=1

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: $(READY)  ## lint and test-fast, side by side
	@$(MAKE) --no-print-directory --jobs=2 lint test-fast

test-slow: $(READY)  ## the tests that train for minutes
	$(PYTEST) -m slow

bench: $(BENCH_READY)  ## run the benchmarks whose figures the README shows
	@set -e; for script in $(BENCHES); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(READY)  ## the pages as a site, into build/site; a warning is an error
	$(BIN)/mkdocs build --strict --site-dir build/site

test-lowest:  ## the lowest releases of dependencies that pyproject.toml allows: install and test them
	$(FIND_PYTHON); $$python -m venv --clear build/lowest
	build/lowest/bin/python .ci/lowest.py > build/lowest.txt
	build/lowest/bin/python -m pip install $(QUIET) -c build/lowest.txt -e . pytest hypothesis
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -q -p no:cacheprovider \
		-W ignore::DeprecationWarning -m "not slow and not learning" --no-machine-code $(LOWEST)
	build/lowest/bin/$(SMOKE)

package:  ## build wheel and sdist into dist/, install each in an environment of its own and train a little
	rm -rf dist build/lib build/wheel build/sdist
	$(FIND_PYTHON); set -e; $$python -m venv --clear build/wheel; \
	build/wheel/bin/python -m pip install $(QUIET) -c constraints.txt setuptools; \
	build/wheel/bin/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"; \
	$$python -m venv --clear build/sdist
	@set -e; for kind in wheel sdist; do \
		built=$$(ls dist/*.whl dist/*.tar.gz | grep $$(test $$kind = wheel && echo whl || echo tar.gz)); \
		echo "== $$built"; \
		build/$$kind/bin/python -m pip install $(QUIET) -c constraints.txt $$built; \
		cd build/$$kind; bin/palimpsest --version; bin/palimpsest list > /dev/null; bin/$(SMOKE); cd ../..; \
	done

clean:  ## remove caches and builds; .venv and runs stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find agents envs memory palimpsest tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(FIND_PYTHON); \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $$python -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[dev,bench]'
	@touch $@
