# Innkeeper. Bare `make` explains the targets.

.DEFAULT_GOAL := help
.PHONY: help setup run stop test proof soak lint bench fresh lock install-service remove-service

# A whole inn lives in one directory; empty means /var/lib/innkeeper.
STATE ?=
state_option := $(if $(STATE),--state-dir $(STATE))

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## Innkeeper: virtual machines on this host. As root, on Debian 12 or newer:
##
##   make setup    install packages, QEMU and .venv; leaves the one executable at .venv/bin/inn
setup:
	@scripts/setup

##   make run      setup, then the main job on real guests, narrated; leaves the inn running
##                 (STATE=dir: an inn of its own in that directory)
run: setup
	@.venv/bin/inn $(state_option) tour

##   make stop     end that inn and leave nothing behind (STATE=dir: the inn in that directory)
stop:
	@if [ -x .venv/bin/inn ]; then .venv/bin/inn $(state_option) down; else echo 'nothing is installed here, so nothing runs'; fi

##   make test     lint, then every test that is not slow (TESTS=smoke: few of those with guests; TESTS=path: those)
test:
	@scripts/setup --tests
	@$(MAKE) --no-print-directory lint
	@scripts/test $(TESTS)

##   make proof    the slow tests: longer crash and load programmes, and what they did
proof:
	@scripts/setup --tests
	@scripts/proof

##   make soak     the durability programmes at their full targets (docs/durability.md), for an hour or more
soak:
	@scripts/setup --tests
	@scripts/soak

##   make lint     ruff check and mypy --strict
lint:
	@scripts/setup --tests
	@.venv/bin/ruff check src tests scripts $(wildcard bench)
	@.venv/bin/mypy --strict

##   make bench    the table of measurements against qemu-nbd, restic and borg; writes bench/results/latest.json
bench:
	@scripts/setup --tests
	@.venv/bin/python -m bench

##   make fresh    `make run`, `make stop` and `make test` in a minimal Debian made for it (FULL=1: the whole `make test`)
fresh:
	@scripts/setup
	@scripts/fresh $(if $(FULL),--full)

##   make lock     recompile requirements/*.txt from pyproject.toml
lock:
	@scripts/lock

##   make install-service, remove-service    start the inn at boot (where systemd runs), or no longer
install-service: setup
	@scripts/service install $(STATE)

remove-service:
	@scripts/service remove $(STATE)
