# Works from a clean clone with Python 3.11, make and git. `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(shell find protos -name '*.proto')

.PHONY: help setup system demo test faults lint bench pin clean
help:  ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 14

setup: .venv/installed .venv/generated  ## install Lading in .venv; the command is .venv/bin/lading

.venv/installed: pyproject.toml constraints.txt hatch_build.py .ci/venv
	.ci/venv $(PYTHON)
	$(BIN)/pip install -qq -c constraints.txt hatchling grpcio-tools mypy-protobuf
	$(BIN)/pip install -qq -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch .venv/installed .venv/generated

.venv/generated: $(PROTOS)
	$(BIN)/python hatch_build.py
	@touch $@

node_modules/installed: package.json
	npm install --loglevel=error
	@touch $@

system:  ## Debian packages that tests and bench use: installed as root, else named
	@.ci/system

demo: setup  ## server, agents and viewer on this machine, with real operations; SMOKE=1 checks them and ends
	$(BIN)/lading demo $(if $(SMOKE),--smoke)

test: system setup  ## the whole suite; ARGS='tests/unit -k name' for a part of it
	@$(MAKE) --no-print-directory node_modules/installed || [ -z "$$CI" ]
	$(BIN)/pytest $(or $(ARGS),-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

faults: system setup  ## the fault suite at length: more seeds and kills, every verb at every crash point
	LADING_FAULTS=all LADING_FAULT_ROUNDS=10 LADING_FAULT_SEEDS=5 LADING_FAULT_SECONDS=60 $(BIN)/pytest tests/faults $(ARGS)

lint: system setup node_modules/installed  ## ruff, mypy --strict, buf, the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	.ci/buf
	$(BIN)/pytest tests/unit/test_imports.py

bench: system setup  ## what it costs, measured: writes bench/RESULTS.md
	$(BIN)/python -m bench

pin: setup  ## after an upgrade: write the versions that are installed to constraints.txt
	$(BIN)/pip freeze --all --exclude-editable | grep -vE '^(pip|wheel)==' > constraints.txt

clean:  ## forget everything that was installed or generated
	rm -rf .venv node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find protos -name '*_pb2*.py*' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
