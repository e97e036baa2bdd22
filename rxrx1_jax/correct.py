"""Tries methods on trained runs and says whether they help: `python -m rxrx1_jax.correct RUN...`.

Each run is a directory of `rxrx1_jax.main`. Its network embeds the sites once; each method then
predicts the test sites, and RUN/corrections/METHOD.parquet keeps what it predicted. The table
compares methods within the same budget of information, paired with the uncorrected network; methods
that transform embeddings are paired with the same classifier of embeddings as they are.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.data.files import write_text
from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.data.splits import FOLDS
from rxrx1_jax.methods import corrections
from rxrx1_jax.methods.catalogue import METHODS, find, reference
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import Score, Unit, compare, holm, worst_experiment
from rxrx1_jax.report.runs import check_same_settings
from rxrx1_jax.report.tables import ADJUSTED, Cell, Table, Value, gain, percent
from rxrx1_jax.training import predictions
from rxrx1_jax.training.run_dir import RunError, read_settings

BASE = "none"
DIFFERING = {"data.fold", "data.seed", "train.seed", *FREE}  # what runs of one table may differ in


def summary(runs: Mapping[Unit, Mapping[str, pa.Table]], shared: float) -> Table:
    """The table of {run: {method: predictions}}, grouped by what the methods may see.

    shared: as in `compare`.
    """
    tried = dict.fromkeys(name for tables in runs.values() for name in tables)
    names = [name for name in tried if all(name in tables for tables in runs.values())]
    scores = {
        name: _scores({unit: tables[name] for unit, tables in runs.items()}) for name in names
    }
    gains = {
        name: compare(scores[name][0], scores[reference(name)][0], shared)
        for name in names
        if name != BASE and reference(name) in scores
    }
    adjusted = dict(zip(gains, holm([found.p for found in gains.values()]), strict=True))
    rows: list[list[Cell]] = []
    for budget in BUDGETS:
        members = [name for name in names if find(name).budget == budget]
        rows += [[budget]] if members else []
        for name in members:
            rows.append([name, *map(percent, scores[name]), "", ""])
            if name in gains:
                rows[-1][-2:] = gain(gains[name]), Value(adjusted[name], 3)
    head = ["method", "by site", "by well", "worst experiment", "gain by site, points", ADJUSTED]
    return Table("Accuracy of the test sites, %", head, rows)


def _scores(tables: Mapping[Unit, pa.Table]) -> list[Score]:
    """By site, by well, and by site of the worst experiment."""
    found = {unit: predictions.accuracies(table) for unit, table in tables.items()}
    return [
        {unit: a["site"]["all"] for unit, a in found.items()},
        {unit: a["well"]["all"] for unit, a in found.items()},
        {unit: worst_experiment(a["site"]["experiment"])[1] for unit, a in found.items()},
    ]


def _unit(run: Path) -> Unit:
    """Folds of several draws of the split (data.seed) are numbered one after the other."""
    config = read_settings(run)
    return Unit("", FOLDS * config.data.seed + config.data.fold, config.train.seed)


def _shared(run: Path) -> float:
    """Test sites per training site."""
    with open(run / "split.csv", newline="", encoding="utf-8") as file:
        roles = Counter(row["role"] for row in csv.DictReader(file))
    return roles["test"] / roles["train"]


def _to_share(run: Path) -> dict[str, Any]:
    settings = flat(read_settings(run))
    return {field: value for field, value in settings.items() if field not in DIFFERING}


def main() -> None:
    width = max(map(len, METHODS))
    lines = [f"  {name:{width}}  {method.about}" for name, method in METHODS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m rxrx1_jax.correct", description=__doc__, epilog="methods:\n"
        + "\n".join(lines), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="METHOD",
        help="names of the list below, or module.name of your own (default: all of the list)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="file for the table, Markdown")
    options = parser.parse_args()
    if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
        parser.error(f"--out={options.out}: expected a file in a folder that exists")
    names = [BASE]
    tables: dict[Unit, dict[str, pa.Table]] = {}
    try:
        for name in options.methods:  # a wrong name is told before the work
            names += [reference(name), name]
        names = list(dict.fromkeys(names))
        first = options.runs[0]
        for run in options.runs:
            check_same_settings(first, _to_share(first), run, _to_share(run))
        for i, run in enumerate(options.runs, 1):
            print(f"{run} ({i} of {len(options.runs)})", file=sys.stderr, flush=True)
            if (unit := _unit(run)) in tables:
                raise ValueError(f"{run}: fold and seed of another run; expected one run of each")
            tables[unit] = corrections.predictions_of(run, names)
        text = summary(tables, max(map(_shared, options.runs))).markdown()
    except (RunError, DatasetError, ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text)
    if options.out:
        write_text(options.out, text)


if __name__ == "__main__":
    main()
