# `make demo`  sets everything up and runs the main job on the synthetic screen
# `make test`  sets everything up and runs the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= data
RUNS   ?= runs/demo
FOLDS  ?= 0 1

.PHONY: demo test lint types clean

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[build]'
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

# Every step reuses what is there: the screen, the records, finished runs.
demo: $(VENV)/.demo
	@test -f $(DATA)/rxrx1/synthetic/1.0.0/dataset_info.json || \
	  TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/tfds build tfds_builder/rxrx1 --config=synthetic --data_dir=$(DATA)
	@set -e; for fold in $(FOLDS); do \
	  for run in batch random_site random_well batch:none; do \
	    protocol=$${run%:*}; norm=plate_control; test $$run = $$protocol || norm=$${run#*:}; \
	    $(BIN)/python -m rxrx1_jax.main --config=configs/demo.py:protocol=$$protocol,fold=$$fold \
	      --config.data.dir=$(DATA) --config.data.normalisation=$$norm \
	      --workdir=$(RUNS)/$$protocol-$$norm-$$fold; \
	  done; done
	@$(BIN)/python -m rxrx1_jax.report $(RUNS)/*/ --out=$(RUNS)-report

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(DATA)/rxrx1/synthetic $(RUNS) $(RUNS)-report
