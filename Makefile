# Everything sets itself up: `make demo` and `make test` work from a fresh clone on a machine with Python 3.11 (or newer),
# a C++ compiler and make. Locked Python packages go to .venv, llama.cpp's build to ~/.cache/swarmctl. No root needed.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install dev runtime demo loop record test check tests lock docs bench clean system

# python3.11 where it really runs (a pyenv shim may only say that it does not), else any python3 new enough.
HASH := \#
ifndef PYTHON
PYTHON := $(shell PATH="$${PATH$(HASH)$(CURDIR)/.venv/bin:}"; for each in python3.11 python3 python3.12 python3.13; do \
  $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$each; break; }; done)
endif
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH):/usr/sbin:/sbin
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

LOCKS = @test -n "$(PYTHON)" || { echo "swarmctl needs Python 3.11 or newer, and no python3.11 or python3 here is." >&2; exit 1; }; \
  $(PYTHON) requirements/install.py

help:  ## Show this list
	@printf 'swarmctl: one language-model service out of a handful of unequal machines\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@printf '\nStart with make demo.\n'

install:  ## Put swarmctl and what it needs into .venv (no torch)
	$(LOCKS) control

dev:  ## install, and all that its developers use (torch: some 5 GB on Linux)
	$(LOCKS) control runtime dev train

runtime:  ## Build llama.cpp once into ~/.cache/swarmctl (half an hour on two cores)
	$(LOCKS) control runtime
	@swarmctl runtime build

demo:  ## See all of it: three SSH hosts on this machine, from nothing to rated answers
	@demo/system.sh sshd
	@$(MAKE) --no-print-directory runtime
	@demo/run.sh

loop: dev  ## See it learn: three rounds of ratings and training on the lab (some ten minutes)
	@demo/system.sh sshd
	@$(MAKE) --no-print-directory runtime
	@python demo/loop.py

test: system dev  ## Every check and every test
	@$(MAKE) --no-print-directory runtime
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory tests

check: dev  ## ruff, mypy, import-linter, deptry
	ruff check .
	mypy
	lint-imports --no-cache
	deptry .

# Most tests wait for servers and not for the processor: one worker more than there are cores, at most eight.
WORKERS = $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); echo $$((n < 8 ? n : 8)))

tests: dev  ## pytest alone (set ARGS for its arguments, WORKERS=0 for one process)
	@tests/run.sh $(WORKERS) $(ARGS)

system:
	@demo/system.sh sshd ip
	@demo/prometheus.sh

lock:  ## Resolve pyproject.toml anew into requirements/*.txt, by hash
	$(LOCKS) control
	@requirements/lock.sh

docs: install  ## Write docs/cli.md from the command line itself
	@python docs/generate_cli.py

record: runtime  ## Run the demo and put what it showed into docs/demo.txt and the README
	@python docs/record_demo.py

bench: runtime  ## Measure start, first token, status, up, journal, gateway, load and more; prints tables
	$(LOCKS) bench
	@for each in start first_token status up scale tunnels journal models slots gateway load; do python bench/$$each.py; done

clean:  ## Remove .venv and what tools leave here (not ~/.cache/swarmctl)
	rm -rf .venv .venv.lock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
