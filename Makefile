# Every chore of this repository. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
# Namespaces, libvirt and Debian trees need root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# What takes longest comes first: begun last, it would be what a run ends with, in one lane.
FAST := tests/simulation tests/property tests/unit
REAL := tests/contract tests/integration tests/faults tests/browser
SERVER ?=
# Tests run side by side, one lane more than processors (tests/conftest.py deals them out). The fast ones have processes
# of their own: real daemons and browsers leave threads and loops behind that property tests and async tests trip over.
LANES := $(shell n=$$(($$(nproc) + 1)); echo $$((n < 6 ? n : 6)))
PYTEST := $(PY) -m pytest -q -n $(LANES) --no-loadscope-reorder --max-worker-restart=0
# For what may take as long as it is asked to.
LONG := -m pytest -q -o faulthandler_timeout=0

.PHONY: help setup setup-demo check test demo demo-start demo-clean dev fix bench bench-grid bench-images bench-desktops school-day kills simulate simulate-mutants faults faults-daemon faults-plain failover appliance appliance-test lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## install what is missing for all of the below
	@appliance/setup.sh all

setup-demo:
	@appliance/setup.sh demo

check: setup ## format, lint, types, import contracts, sizes, fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy -p kmgr -p appliance -p tests
	.venv/bin/lint-imports
	$(PYTEST) $(FAST)
	@$(PY) -m tests.passed --note

test: setup ## every test, with real QEMU, libvirt, slapd and a browser
	@$(PY) -m tests.passed || { echo '$(PYTEST) $(FAST)'; $(SUDO) $(PYTEST) $(FAST); }
	$(SUDO) $(PYTEST) --durations=15 $(REAL)

demo: setup-demo ## a grid of three servers on this machine, until Ctrl-C
	@exec $(SUDO) $(PY) -m appliance.demo run

demo-start: ## start a server of the running demo again: SERVER=two
	@exec $(SUDO) $(PY) -m appliance.demo start $(SERVER)

demo-clean: ## stop the demo and remove all it made
	@if [ -x $(PY) ]; then $(SUDO) $(PY) -m appliance.demo clean; else $(SUDO) rm -rf build/demo; fi

dev: setup-demo ## a grid of one server from this checkout, for working on pages
	@exec $(SUDO) $(PY) -m appliance.demo run --servers 1 --folder build/dev

fix: setup ## let ruff format and mend what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup ## figures beside their floors, into build/bench.json
	$(SUDO) $(PY) -m tests.bench

bench-grid: setup ## the log alone: speed, lead lost, restart, idle cost; into build/bench-grid.json
	$(PY) -m tests.bench.bench_grid

bench-images: setup ## images over links of a known rate, beside rsync, scp, libtorrent: PARTS="slow delta" SHORT=1
	$(SUDO) $(PY) -m tests.bench.bench_images $(PARTS) $(if $(SHORT),--short)

bench-desktops: setup ## desktops: started, restored, claimed, beside booting and bare libvirt: PARTS="clones" SHORT=1
	$(SUDO) $(PY) -m tests.bench.bench_desktops $(PARTS) $(if $(SHORT),--short)

school-day: setup ## a day of 100 servers and 10,000 desktops in virtual time, with losses, a publication and a drain
	$(PY) -m tests.lab.school_run

kills: setup ## kill -9 of daemons in the middle of real desktops' transitions: KILLS=20 SEED=3
	$(SUDO) env KMGR_KILLS=$(or $(KILLS),20) KMGR_SEED=$(or $(SEED),3) $(PY) $(LONG) tests/integration/test_desktops_killed.py

simulate-mutants: setup ## logs with a rule of Raft missing, until the simulation notices
	KMGR_MUTANT_SEEDS=$(or $(SEEDS),1:100) $(PY) $(LONG) -s tests/simulation/test_raft_mutants.py

faults: setup ## servers in network namespaces under every fault: SECONDS=600 SEED=7 SERVERS=5
	$(SUDO) $(PY) -m tests.faults --seconds $(or $(SECONDS),600) $(SEED:%=--seed %) $(SERVERS:%=--servers %) $(ONLY:%=--only %)

faults-daemon: setup ## the same faults on whole daemons: pages, agents and all, but no desktops
	$(SUDO) $(PY) -m tests.faults --profile daemon --seconds $(or $(SECONDS),600) $(SEED:%=--seed %) $(SERVERS:%=--servers %) $(ONLY:%=--only %)

faults-plain: setup ## the same faults on bare pysyncobj, which loses changes
	$(SUDO) $(PY) -m tests.faults --plain --seconds $(or $(SECONDS),600) $(SEED:%=--seed %) $(SERVERS:%=--servers %) $(ONLY:%=--only %)

failover: setup ## kill whole servers, or cut them off, while a personal desktop writes on them: TIMES=20
	$(SUDO) $(PY) -m tests.faults.failover --times $(or $(TIMES),20) $(SEED:%=--seed %)

simulate: setup ## thousands of simulated grids: SEEDS=10000 FIRST=1
	$(PY) -m tests.lab.simulate --seeds $(or $(SEEDS),10000) $(FIRST:%=--first %) $(STEPS:%=--steps %)

appliance: setup-demo ## a bootable disk with everything on it
	$(SUDO) $(PY) -m appliance.image.appliance

appliance-test: setup-demo ## boot that disk and answer its two questions
	$(SUDO) $(PY) -m appliance.image.trial

lock: ## pin the Python packages anew (needs uv)
	printf 'setuptools\nwheel\n' | uv pip compile --universal --generate-hashes --python-version 3.11 --extra dev \
	    --extra desktops --no-emit-index-url --no-header --no-annotate -q -o requirements.lock setup.cfg -

clean: demo-clean ## remove everything that was built
	rm -rf build
