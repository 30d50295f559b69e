# `make demo` and `make test` do all the set-up on a bare machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo fleet-demo test test-keras lint study-quick bench bench-fleet guarantees mutants conformance fuzz lab lab-down lab-test lab-plug clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(STAMP) ## compress, export, prove, push, measure and report the default model on a loopback board
	@scripts/demo $(BIN)/edgepipe

fleet-demo: $(STAMP) ## a fleet of loopback boards, some of them sick: BOARDS=20 SICK=2, writes out/fleet-demo/report.html
	@scripts/ensure-sshd
	$(BIN)/python scripts/fleet_demo.py

study-quick: $(STAMP) ## the small compression study on this machine, out/study-quick/report.html
	$(BIN)/edgepipe study studies/quick.toml

test: $(STAMP) ## run the tests (about 25 minutes on two cores)
	@scripts/ensure-sshd || true
	$(BIN)/python -m pytest -rs -n 2 --dist loadfile

KERAS = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,keras]'
test-keras: $(STAMP) ## the tests that need TensorFlow (2 GB, installed first): Keras files, SavedModels, frozen graphs
	$(KERAS)
	$(BIN)/python -m pytest -n 2 tests/unit/test_inspect.py tests/unit/test_keras.py

lint: $(STAMP) ## style, types, layering, Python floor of the agent, size budgets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin -q -t=3.8- --no-tips --violations edgepipe/agent edgepipe/schema.py edgepipe/codec.py edgepipe/errors.py
	$(BIN)/python scripts/budgets.py

bench: $(STAMP) ## print the figures, as ratios measured side by side; PART=start, transfer, export, latency, mlperf, statistics, turns, compression, fleet, fleet_dask, fleet_ssh, serve, llm, lora or peers
	@scripts/ensure-sshd rsync
	$(BIN)/python -m tests.bench $(PART)

bench-fleet: $(STAMP) ## fleets: planning, killed gateways, 100 boards beside pyinfra and Ansible, the page; BOARDS=10000
	@scripts/ensure-sshd
	$(BIN)/python -m tests.bench fleet fleet_dask fleet_ssh serve

guarantees: $(STAMP) ## print the table of guarantees and what was reached; SMALL=1 tries less often, WRITE=1 updates docs
	@scripts/ensure-sshd || true
	$(BIN)/python -m tests.guarantees

mutants: $(STAMP) ## plant faults in the release rules and the store, and print those no test notices (a minute)
	$(BIN)/python scripts/mutants.py

conformance: $(STAMP) ## convert public files, plant faults, write docs/conformance.md and conversions.md (with TensorFlow, 2 GB; half an hour or more)
	$(KERAS)
	$(BIN)/python -m tests.conformance.conversions
	$(BIN)/python -m tests.conformance

fuzz: $(STAMP) ## feed mutated files to every reader and print how each ended; COUNT=100000 in all
	$(BIN)/python -m tests.fuzz_files

lab: $(STAMP) ## bring up boards without hardware (as root): BOARDS="native pi4 zero2w", or more; see docs/lab.md
	$(BIN)/python -m lab up $(BOARDS)

lab-down: $(STAMP) ## end them, and remove all they made
	$(BIN)/python -m lab down $(BOARDS)

lab-test: $(STAMP) ## deploy to emulated boards, and break boards (what that takes is installed first, as root)
	$(BIN)/python -m lab prepare user machine
	$(BIN)/python -m pytest -rs -m lab tests/lab

lab-plug: $(STAMP) ## pull the plug of a whole emulated machine PULLS=20 times in each phase of a deploy (about an hour)
	$(BIN)/python -m lab prepare machine
	PULLS=$(or $(PULLS),20) $(BIN)/python -m pytest -rs -m lab tests/lab/test_plug.py

clean: ## remove what the build made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
