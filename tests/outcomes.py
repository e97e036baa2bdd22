"""Made-up outcomes of the jobs of a leaderboard, and its tables as text."""

from itertools import product
from pathlib import Path

import pyarrow as pa

from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.runs import FinishedRun

# Three folds and two seeds.
TRAINING, SHARED = 0.75, 0.4  # accuracy of every run; test sites per training site
UNITS = [Unit("rxrx1/x", fold, seed) for fold, seed in product(range(3), range(2))]


def made_up(rng, low=0.2, high=0.9):
    """Accuracies of one run, as predictions.accuracies gives them."""
    cell_types = {name: rng.uniform(low, high) for name in ("HUVEC", "RPE")}
    experiments = {f"{name}-0{k}": rng.uniform(low, high) for name in cell_types for k in (1, 2)}
    kinds = {"cell_type": cell_types, "experiment": experiments}
    return {
        "site": {"all": rng.uniform(low, high), **kinds},
        "well": {"all": rng.uniform(low, high), **kinds},
        "top5": rng.uniform(low, high),
    }


def outcome(accuracy, unit, trained="base", protocol="batch", control=""):
    results = {
        "data": {"name": unit.world, "version": "1", "source": "synthetic", "classes": 4,
                 "image_size": 16, "train_sites": 90, "test_sites": 36},
        "model": "m",
    }  # fmt: skip
    logged = [{"train_accuracy": 0.1}, {"train_accuracy": TRAINING}, {"test_accuracy": 0.2}]
    run = FinishedRun(
        Path("nowhere"), {}, results, logged, accuracy, {}, "", pa.table({}), {}
    )
    return Outcome(Job(control, trained, protocol, unit), run, "")


def of_rows(table):
    """{name: its cells as text} of the rows that are no headings."""
    return {str(row[0]): list(map(str, row[1:])) for row in table.rows if len(row) > 1}
