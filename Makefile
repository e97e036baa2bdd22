# `make demo`   sets everything up and runs the main job on the synthetic screen
# `make table1` does so for the 30 runs of the paper's table
# `make leaderboard` compares methods, and their controls, on the synthetic screen
# `make test`   sets everything up and runs the tests
# `make test-oldest`, `make test-newest` do so on the oldest versions that pyproject.toml declares,
#               and on the newest there are (PYTHON=python3.13)
# `make bench`  prints the benchmarks' tables
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= data
FOLDS  ?= 0 1 2
# The dataset of the demo: what `tfds build --config=` takes, its name, and where its runs go.
BUILD  ?= synthetic
SCREEN ?= synthetic
RUNS   ?= runs/demo
VERSION := $(shell sed -n 's/.*VERSION = tfds.core.Version("\(.*\)").*/\1/p' \
  tfds_builder/rxrx1/rxrx1_dataset_builder.py)
RECORDS = $(DATA)/rxrx1/$(SCREEN)/$(VERSION)/dataset_info.json

.PHONY: demo table1 control leaderboard bench test test-oldest test-newest lint types clean

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[build]'
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

# Every step reuses what is there: the screen, the records, finished runs.
$(RECORDS): | $(VENV)/.demo
	@TF_CPP_MIN_LOG_LEVEL=3 \
	  $(BIN)/tfds build tfds_builder/rxrx1 --config='$(BUILD)' --data_dir=$(DATA)

demo: $(RECORDS)
	@set -e; for fold in $(FOLDS); do \
	  for run in batch random_site random_well batch:none; do \
	    protocol=$${run%:*}; norm=plate_control; test $$run = $$protocol || norm=$${run#*:}; \
	    $(BIN)/python -m rxrx1_jax.main --config=configs/demo.py:protocol=$$protocol,fold=$$fold \
	      --config.data.dir=$(DATA) --config.data.name=rxrx1/$(SCREEN) \
	      --config.data.normalisation=$$norm \
	      --workdir=$(RUNS)/$$protocol-$$norm-$$fold; \
	  done; done
	@$(BIN)/python -m rxrx1_jax.report $(RUNS)/*/ --out=$(RUNS)-report

# The paper's 30 runs, the cell types by models of their own, on the same screen.
table1: $(RECORDS)
	@$(BIN)/python -m rxrx1_jax.table1 --config=configs/demo.py --config.data.dir=$(DATA) \
	  --config.data.name=rxrx1/$(SCREEN) --workdir=runs/table1

# `make demo` on a screen without experiment and plate effects: what is left is no batch effect.
control:
	@$(MAKE) demo SCREEN=no_batch_effect RUNS=runs/control \
	  BUILD='{"name": "no_batch_effect", "size": 64, "screen": {"batch_effect": 0}}'

# Methods x folds x seeds on the screen, with three controls, as configs/leaderboard.py says. The
# two further screens: without experiment and plate effects, and with those of the gains alone.
NO_EFFECT = {"name": "no_batch_effect", "size": 64, "screen": {"batch_effect": 0}}
GAIN_ONLY = {"name": "gain_only", "size": 64, "screen": {"effects": "gain"}}
SEEDS   ?= 0,1
WORKERS ?= 2
comma := ,
empty :=
leaderboard: $(RECORDS)
	@$(MAKE) $(DATA)/rxrx1/no_batch_effect/$(VERSION)/dataset_info.json SCREEN=no_batch_effect \
	  BUILD='$(NO_EFFECT)'
	@$(MAKE) $(DATA)/rxrx1/gain_only/$(VERSION)/dataset_info.json SCREEN=gain_only BUILD='$(GAIN_ONLY)'
	@$(BIN)/python -m rxrx1_jax.leaderboard --config=configs/demo.py --config.data.dir=$(DATA) \
	  --config.data.name=rxrx1/$(SCREEN) --methods=configs/leaderboard.py \
	  --workdir=runs/leaderboard --folds=$(subst $(empty) ,$(comma),$(FOLDS)) --seeds=$(SEEDS) \
	  --workers=$(WORKERS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# Every benchmark in turn, each a table of ratios; what they mean stands in benchmarks/README.md.
WORK ?= $(DATA)/benchmarks
bench: $(VENV)/.dev
	@mkdir -p $(WORK)
	@set -e; for name in encoding loaders build train_step forms scaling cost_model; do \
	  echo "## $$name"; $(BIN)/python -m benchmarks.$$name; done
	@set -e; for name in end_to_end evaluation startup; do \
	  echo "## $$name"; $(BIN)/python -m benchmarks.$$name --work=$(WORK); done

test-oldest:
	.ci/versions lowest-direct $(PYTHON)

test-newest:
	.ci/versions highest $(PYTHON)

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(DATA)/rxrx1/$(SCREEN) $(DATA)/downloads/rxrx1_$(SCREEN) $(RUNS) $(RUNS)-report
