"""Evaluation against the bare forward pass, and the time from predictions of all sites to a report.

    python -m benchmarks.evaluation [--work DIR] [--cases 64 224] [--rounds 5] [--sites 125510]

Evaluation is `evaluate.evaluate_sites` on all treatment sites of a synthetic screen, with the
networks of `end_to_end`: the demo's at 64 px, ResNet-18 at 224 px. Fed from memory (planes read
beforehand) it shows what the evaluation itself costs beside its compiled step on the same planes;
fed by the pipeline it also reads and inflates.

The report is made of a generated run in which every site of the release is a test site.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.end_to_end import CASES
from benchmarks.screens import use_screen
from benchmarks.timing import command, compare, describe, markdown
from configs import demo
from rxrx1_jax.report.__main__ import main as report
from rxrx1_jax.training import evaluate, predictions, steps
from rxrx1_jax.training.setup import prepare

STEP, MEMORY, PIPELINE = (
    "forward pass alone, from memory", "evaluation, from memory", "evaluation, from the pipeline",
)  # fmt: skip
CELL_TYPES = {"HEPG2": 11, "HUVEC": 24, "RPE": 11, "U2OS": 5}  # experiments of the release
CLASSES = 1108


def evaluation(case: str, work: Path, rounds: int) -> str:
    config, _ = CASES[case]()
    use_screen(config, work, int(case))
    setup = prepare(config)
    sites, state = setup.images.sites, setup.init()
    rows = np.flatnonzero(sites["well_type"] == "treatment")
    store, draws = setup.evaluation_draws(rows)
    draws = jax.block_until_ready(list(draws))
    run = setup.evaluator(steps.eval_step)

    def forward() -> None:
        for draw in draws:
            outputs = run(state, store, draw)
        jax.block_until_ready(outputs)

    def from_memory() -> None:
        found = evaluate.collect((run(state, store, draw) for draw in draws), rows)
        table = predictions.predictions_table(
            sites[rows], setup.vocabulary.classes, found["log_probs"], found["loss"]
        )
        predictions.accuracies(table)

    def from_pipeline() -> None:
        evaluate.evaluate_sites(setup, state, rows)

    tasks = {STEP: forward, MEMORY: from_memory, PIPELINE: from_pipeline}
    timings = compare(tasks, len(rows), STEP, rounds)
    heading = f"{config.model.name}, {case} px, batches of {config.eval.batch_size}"
    return markdown(timings, "site", heading)


def write_run(path: Path, sites: int) -> float:
    """A finished run with random predictions of `sites` sites; seconds that its table took."""
    rng = np.random.default_rng(0)
    names = [f"{cell}-{i:02}" for cell, n in CELL_TYPES.items() for i in range(1, n + 1)]
    experiment = np.array(names)[np.sort(rng.integers(len(names), size=-(-sites // 2)))]
    experiment = np.repeat(experiment, 2)[:sites]
    well = np.char.add(np.char.add(experiment, "_1_"), (np.arange(sites) // 2).astype(str))
    columns = {
        "site_id": np.char.add(well, np.where(np.arange(sites) % 2, "_2", "_1")),
        "well_id": well,
        "cell_type": np.array([name.split("-")[0] for name in names])[
            np.searchsorted(names, experiment)
        ],
        "dataset": np.full(sites, "test"),
        "experiment": experiment,
        "plate": np.ones(sites, np.int32),
        "well": np.full(sites, "B02"),
        "site": np.arange(sites, dtype=np.int32) % 2 + 1,
        "sirna": np.full(sites, "s1"),
        "sirna_id": np.repeat(rng.integers(CLASSES, size=-(-sites // 2)), 2)[:sites],
    }
    table_of = np.empty(sites, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table_of[name] = column
    log_probs = rng.standard_normal((sites, CLASSES), np.float32)
    log_probs[np.arange(sites), table_of["sirna_id"]] += 2.5  # some are right
    log_probs -= np.float32(np.log(CLASSES) + 0.5)
    began = time.perf_counter()
    table = predictions.predictions_table(table_of, np.arange(CLASSES), log_probs, -log_probs[:, 0])
    accuracy = predictions.accuracies(table)
    took = time.perf_counter() - began
    path.mkdir(parents=True)
    predictions.write_predictions(path / "predictions.parquet", table)
    config = demo.get_config().to_dict()
    data = {
        "name": "rxrx1/generated", "version": "1.0.0", "source": "synthetic", "classes": CLASSES,
        "image_size": 64, "train_sites": sites, "test_sites": sites,
    }  # fmt: skip
    results = {
        "data": data, "protocol": "batch", "fold": 0, "cell_type": "all",
        "normalisation": "plate_control", "model": "resnet_demo", "epochs": 40, "seed": 0,
        "step": 1, "total_steps": 1, "loss": 1.0, "accuracy": accuracy,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "results.json").write_text(json.dumps(results))
    lines = [
        {"step": step, "epoch": step / 300, "train_loss": 1.0, "train_accuracy": 0.5}
        for step in range(50, 27_000, 50)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("data"), help="where the screen is kept")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sites", type=int, default=125_510, help="rows of predictions.parquet")
    options = parser.parse_args()
    print(describe(("jax", "pyarrow", "matplotlib", "numpy"), rounds=options.rounds))
    for case in options.cases:
        print(evaluation(case, options.work, options.rounds), "\n")
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "page"
        took = write_run(run, options.sites)
        print(f"{options.sites:,} sites x {CLASSES} classes -> table, accuracies: {took:.1f} s\n")

        def in_process() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                if report([str(run), f"--out={page}"]):
                    raise SystemExit("the report failed")

        module = [sys.executable, "-m", "rxrx1_jax.report", str(run), f"--out={page}"]
        tasks = {
            "the report, as a command": command(module),
            "the same without imports": in_process,
        }
        timings = compare(tasks, 1, "the report, as a command", options.rounds)
        print(markdown(timings, "report", f"predictions.parquet of {options.sites:,} sites"))


if __name__ == "__main__":
    main()
