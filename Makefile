# `make` alone lists the targets. FOLDS, SEEDS, WORKERS, DATA ... are set as in `make demo FOLDS=0`.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= data
FOLDS  ?= 0 1 2
# The dataset of the demo: the --config of its build, its name, and where its runs go.
BUILD  ?= synthetic
SCREEN ?= synthetic
RUNS   ?= runs/demo
REAL   ?= runs/real
VERSION := $(shell sed -n 's/.*VERSION = tfds.core.Version("\(.*\)").*/\1/p' \
  tfds_builder/rxrx1/rxrx1_dataset_builder.py)
RECORDS = $(DATA)/rxrx1/$(SCREEN)/$(VERSION)/dataset_info.json

.PHONY: help demo real table1 control leaderboard worlds board screening tune dose bench test test-long test-oldest test-newest lint \
  types clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.demo: pyproject.toml
	@echo "Installing rxrx1_jax and what builds datasets into $(VENV): 3.5 GB, some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[build]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@echo "Installing rxrx1_jax and what its tests need into $(VENV): 5 GB, more with PyTorch for CUDA."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.analysis $(VENV)/.real $@

$(VENV)/.analysis: $(VENV)/.demo
	@echo "Installing ComBat, Harmony (GPL-3.0) and scikit-learn into $(VENV)."
	@$(BIN)/python -m pip install --quiet --editable '.[analysis,build,harmony]'
	@touch $@

$(VENV)/.real: pyproject.toml
	@echo "Installing rxrx1_jax, ComBat and scikit-learn into $(VENV); no TensorFlow."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[analysis]'
	@touch $@

# Every step reuses what is there: the screen, the records, finished runs.
$(RECORDS): | $(VENV)/.demo
	@$(BIN)/python -m tfds_builder.rxrx1 build --config='$(BUILD)' --data_dir=$(DATA)

# PROTOCOL-FOLD of each run.
DEMO = $(foreach fold,$(FOLDS),batch-$(fold) random_site-$(fold) random_well-$(fold))
demo: $(RECORDS) ## data, 9 trainings, table and page on the synthetic screen: 6 minutes on two cores
	@set -e; for run in $(DEMO); do \
	  test $(RUNS)/$$run/results.json -nt $(RECORDS) || set -- "$$@" $$run; done; \
	n=0; left=; began=$$(date +%s); for run do \
	  printf '\nrun %s of %s: %s\n' $$((n + 1)) $$# "$(RUNS)/$$run$$left"; \
	  $(BIN)/python -m rxrx1_jax.main --config=demo:protocol=$${run%-*},fold=$${run##*-} \
	    --config.data.dir=$(DATA) --config.data.name=rxrx1/$(SCREEN) --workdir=$(RUNS)/$$run; \
	  n=$$((n + 1)); \
	  left=", about $$((($$(date +%s) - began) * ($$# - n) / n / 60 + 1)) min left"; \
	done
	@$(BIN)/python -m rxrx1_jax.report $(addprefix $(RUNS)/,$(DEMO)) --out=$(RUNS)-report

# Methods on the embeddings of the real screen that Recursion publishes. FROM: a folder that has
# its two archives already.
REAL_METHODS = centroids lda softmax centre_scale_plate+lda sphering_experiment+lda tvn_plate+lda \
  centre_experiment+lda combat_experiment+lda
FROM ?=
real: $(VENV)/.real ## corrections of the published embeddings of the real screen: 52 MB, no images
	@$(BIN)/python -m rxrx1_jax.download --out='$(DATA)/rxrx1_embeddings' $(if $(FROM),--from='$(FROM)')
	@$(BIN)/python -m rxrx1_jax.correct --embeddings='$(DATA)/rxrx1_embeddings/rxrx1-dl-embeddings.zip' \
	  --metadata='$(DATA)/rxrx1_embeddings/rxrx1-metadata.zip' --protocol=batch,random_well \
	  --folds=$(subst $(empty) ,$(comma),$(FOLDS)) --methods $(REAL_METHODS) --out=$(REAL)

# The paper's 30 runs, the cell types by models of their own.
TABLE1 ?= four_cell_types
table1: $(VENV)/.demo ## the 30 runs of the paper's table on a synthetic screen of four cell types
	@$(MAKE) $(DATA)/rxrx1/$(TABLE1)/$(VERSION)/dataset_info.json SCREEN=$(TABLE1) BUILD=$(TABLE1)
	@$(BIN)/python -m rxrx1_jax.table1 --config=demo --config.data.dir=$(DATA) \
	  --config.data.name=rxrx1/$(TABLE1) --workdir=runs/table1 --workers=$(WORKERS)

# `make demo` on a screen without experiment and plate effects: what is left is no batch effect.
control: ## `make demo` without batch effects: no split should be easier than another
	@$(MAKE) demo SCREEN=no_batch_effect RUNS=runs/control \
	  BUILD='$(NO_EFFECT)'

# Methods x folds x seeds on the screen, with three controls, as configs/leaderboard.py says. The
# two further screens: without experiment and plate effects, and with those of the gains alone.
NO_EFFECT = {"name": "no_batch_effect", "size": 64, "screen": {"batch_effect": 0}}
GAIN_ONLY = {"name": "gain_only", "size": 64, "screen": {"effects": "gain"}}
SEEDS   ?= 0,1
WORKERS ?= 2
comma := ,
empty :=
leaderboard: $(RECORDS) $(VENV)/.analysis ## methods x folds x seeds, with three controls: 126 trainings, an hour
	@$(MAKE) $(DATA)/rxrx1/no_batch_effect/$(VERSION)/dataset_info.json SCREEN=no_batch_effect \
	  BUILD='$(NO_EFFECT)'
	@$(MAKE) $(DATA)/rxrx1/gain_only/$(VERSION)/dataset_info.json SCREEN=gain_only BUILD='$(GAIN_ONLY)'
	@$(BIN)/python -m rxrx1_jax.leaderboard --config=demo --config.data.dir=$(DATA) \
	  --config.data.name=rxrx1/$(SCREEN) --methods=leaderboard \
	  --workdir=runs/leaderboard --folds=$(subst $(empty) ,$(comma),$(FOLDS)) --seeds=$(SEEDS) \
	  --workers=$(WORKERS)

# Screens of other seeds are worlds; DOSE is how many times the batch effects of the screen they
# have.
WORLDS  ?= 0 1 2 3 4 5 6 7
DOSES   ?= 0 0.5 1 1.5 2
DOSE    ?= 1
METHODS ?= screening
BOARDS  ?= runs/worlds
NAMES    = $(subst $(empty) ,$(comma),$(foreach world,$(WORLDS),rxrx1/world_$(world)_dose_$(DOSE)))
ON_WORLDS = --config=demo --config.data.dir=$(DATA) --worlds=$(NAMES) \
  --config.data.name=rxrx1/world_$(firstword $(WORLDS))_dose_$(DOSE) \
  --folds=$(subst $(empty) ,$(comma),$(FOLDS)) --seeds=0 --workers=$(WORKERS)
worlds: $(VENV)/.demo ## the screens of WORLDS with a DOSE of batch effects
	@set -e; for world in $(WORLDS); do name=world_$${world}_dose_$(DOSE); \
	  test -e $(DATA)/rxrx1/$$name/$(VERSION)/dataset_info.json || \
	  $(BIN)/python -m tfds_builder.rxrx1 build --data_dir=$(DATA) --config="$$(printf \
	    '{"name": "%s", "size": 64, "screen": {"seed": %s, "batch_effect": %s}}' \
	    $$name $$world $(DOSE))"; done

board: worlds $(VENV)/.analysis ## a leaderboard of METHODS over WORLDS with a DOSE of batch effects
	@$(BIN)/python -m rxrx1_jax.leaderboard $(ON_WORLDS) --methods=$(METHODS) \
	  --workdir=$(BOARDS)/$(DOSE)

screening: ## a leaderboard over eight worlds, and whether the screen is accepted
	@$(MAKE) board
	@$(MAKE) board DOSE=0 METHODS=dose
	@$(BIN)/python -m benchmarks.acceptance $(BOARDS)/1 --without=$(BOARDS)/0 --data_dir=$(DATA)

TUNING  ?= 8 9
DRAWS   ?= 6
tune: $(VENV)/.analysis ## DRAWS settings of each of METHODS, chosen on the worlds of TUNING, scored on WORLDS
	@$(MAKE) worlds WORLDS="$(WORLDS) $(TUNING)"
	@$(BIN)/python -m rxrx1_jax.search $(METHODS) --draws=$(DRAWS) $(ON_WORLDS) \
	  --tuning_worlds=$(subst $(empty) ,$(comma),$(TUNING:%=rxrx1/world_%_dose_$(DOSE))) \
	  --workdir=$(BOARDS)/search

dose: screening ## gain over dose: gap and corrections as batch effects grow
	@set -e; for dose in $(filter-out 0 1,$(DOSES)); do \
	  $(MAKE) board DOSE=$$dose METHODS=dose; done
	@$(BIN)/python -m benchmarks.dose $(foreach d,$(DOSES),$(d)=$(BOARDS)/$(d)) \
	  --out=$(BOARDS)/dose.png

# Two calls: the number of simulated devices is fixed when a process starts.
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile
test: $(VENV)/.dev ## the tests but the long ones: 6 minutes on two cores
	$(PYTEST) -m 'not devices and not long'
	$(PYTEST) -m devices

test-long: $(VENV)/.dev ## the long tests: kills, clusters, programs of other libraries, leaderboards
	$(PYTEST) -m 'long and not devices'

# Each prints its tables; what they mean stands in benchmarks/README.md.
bench: $(VENV)/.dev ## the benchmarks' tables
	@set -e; for name in encoding train_step cost_model; do \
	  echo "## $$name"; $(BIN)/python -m benchmarks.$$name; done

test-oldest: ## all tests on the oldest versions that pyproject.toml declares, in an environment of its own
	.ci/versions lowest-direct $(PYTHON)

test-newest: ## all tests on the newest versions there are (PYTHON=python3.13)
	.ci/versions highest $(PYTHON)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy
	$(BIN)/mypy

clean: ## removes the demo's data, runs and page
	rm -rf $(DATA)/rxrx1/$(SCREEN) $(DATA)/downloads/rxrx1_$(SCREEN) $(RUNS) $(RUNS)-report
