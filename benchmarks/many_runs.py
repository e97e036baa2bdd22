"""Time and memory of the report of many finished runs, at the size of the release.

    python -m benchmarks.many_runs [--runs 300] [--experiments 51]

The runs are made up: 25 learning rates x 3 folds x seeds. Each has random predictions of about as
many sites as a fold tests, one plate of each experiment. They are collected by
`python -m rxrx1_jax.report`, in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.tables import metadata_rows
from benchmarks.timing import describe
from rxrx1_jax import config as config_lib
from rxrx1_jax.data.images import METADATA, NUMBERS
from rxrx1_jax.training.predictions import accuracies, predictions_table, write_predictions

CLASSES = 1108
RATES, FOLDS = 25, 3


def make_sites(experiments: int) -> np.ndarray:
    """The treatment sites of a plate of each experiment: as many as a fold tests."""
    rows = [row for row in metadata_rows(experiments) if row[5] == 1 and row[8] == "treatment"]
    return np.array(rows, [(name, "i4" if name in NUMBERS else "U24") for name in METADATA])


def make_runs(folder: Path, runs: int, experiments: int) -> tuple[list[Path], int]:
    """The folders of the runs, and how many sites each tests."""
    sites = make_sites(experiments)
    rng, paths = np.random.default_rng(0), []
    logits = rng.normal(size=(len(sites), CLASSES)).astype(np.float32)
    logits[np.arange(len(sites)), sites["sirna_id"]] += 3
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    table = predictions_table(sites, np.arange(CLASSES), log_probs)
    predictions = folder / "predictions.parquet"
    write_predictions(predictions, table)
    accuracy = accuracies(table)
    for number in range(runs):
        rate, fold, seed = number % RATES, number // RATES % FOLDS, number // RATES // FOLDS
        config = config_lib.default()
        changes = {"data.fold": fold, "train.seed": seed, "optim.learning_rate": 0.01 * (rate + 1)}
        config_lib.change(config, changes)
        data = {
            "name": config.data.name, "version": "2.0.0", "source": "release", "classes": CLASSES,
            "image_size": 512, "train_sites": 73_068, "test_sites": len(sites),
        }  # fmt: skip
        results = {
            "data": data, "protocol": "batch", "fold": fold, "cell_type": "all",
            "normalisation": config.data.normalisation, "model": config.model.name, "epochs": 90,
            "seed": seed, "step": 900, "total_steps": 900, "accuracy": accuracy, "loss": 1.0,
        }  # fmt: skip
        path = folder / f"run-{number}"
        path.mkdir()
        os.link(predictions, path / predictions.name)
        files = {
            "results": results,
            "config": config.to_dict() | {"dataset": {"version": "2.0.0", "data": "5ca1ab1e"}},
            "environment": {"commit": "?", "python": "3.11", "devices": ["cpu"], "packages": {}},
        }
        for name, content in files.items():
            (path / f"{name}.json").write_text(json.dumps(content))
        lines = [{"step": 10 * i, "epoch": float(i), "train_loss": 5 / i, "train_accuracy": i / 100}
                 for i in range(1, 91)]  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(path)
    return paths, len(sites)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--experiments", type=int, default=51)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")  # a child's peak counts what its parent had
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, spawn) as pool:
        paths, sites = pool.submit(
            make_runs, Path(name), options.runs, options.experiments
        ).result()  # fmt: skip
        print(describe(("numpy", "pyarrow", "matplotlib"), runs=options.runs, sites=sites))
        words = [*map(str, paths), f"--out={name}/report"]
        begun = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "rxrx1_jax.report", *words], stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(child.pid, 0)
        wall, child.returncode = time.monotonic() - begun, os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"error: the report ended with status {child.returncode}")
    cpu = used.ru_utime + used.ru_stime
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print("| runs | test sites each | CPU s | s | peak GB |\n|---|---|---|---|---|")
    print(f"| {options.runs} | {sites:,} | {cpu:.1f} | {wall:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
