"""Optuna chooses settings of a run by validation experiments; any number of processes at once.

pip install optuna
python examples/search_with_optuna.py demo:val_experiments=1 runs/optuna 20

Start it as often as you like, on all hosts that share the folder: the trials lie in one file there,
20 in all. A trial whose process is killed counts, and is not tried again. What Optuna proposes
depends on other results, so a search that compares methods is `python -m rxrx1_jax.search`, which
draws all settings beforehand.
"""

# /// script
# dependencies = ["optuna", "rxrx1_jax"]
# ///

import sys
from pathlib import Path

if len(sys.argv) != 4:
    sys.exit("usage: python examples/search_with_optuna.py CONFIG FOLDER TRIALS")

import optuna
from optuna.storages.journal import JournalFileBackend

import rxrx1_jax as rx
from rxrx1_jax.training.diverged import Diverged
from rxrx1_jax.training.run_dir import read_results

name, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


def accuracy(trial):
    """Of the validation sites; the test sites have no say."""
    config = rx.config.read(name)
    config.optim.learning_rate = trial.suggest_float("learning_rate", 0.02, 0.8, log=True)
    config.optim.weight_decay = trial.suggest_float("weight_decay", 5e-5, 5e-3, log=True)
    config.optim.label_smoothing = trial.suggest_categorical("label_smoothing", [0.0, 0.1])
    run = folder / f"trial-{trial.number}"
    try:
        rx.train(config, run)
    except Diverged as error:
        raise optuna.TrialPruned(str(error)) from error
    return read_results(run)["other_sets"]["val"]["accuracy"]["site"]["all"]


folder.mkdir(parents=True, exist_ok=True)
storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
study = optuna.create_study(
    study_name="search", storage=storage, direction="maximize", load_if_exists=True
)
enough = optuna.study.MaxTrialsCallback(count, states=None)  # of all processes, those at work, too
if len(study.trials) < count:
    study.optimize(accuracy, callbacks=[enough])
print(f"trial {study.best_trial.number} of {len(study.trials)}: {study.best_value:.3f}")
print(study.best_params)
