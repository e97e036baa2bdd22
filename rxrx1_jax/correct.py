"""Tries methods on trained runs and says whether they help: `python -m rxrx1_jax.correct RUN...`.

Each run is a directory of `rxrx1_jax.main`. Its network embeds the sites once; each method then
predicts the test sites, and RUN/corrections/METHOD.parquet keeps what it predicted. The table
compares methods within the same budget of information, paired with the uncorrected network.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.data.files import write_text
from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.methods import corrections, statistics
from rxrx1_jax.methods.catalogue import METHODS, find
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import Score, Unit
from rxrx1_jax.report.runs import check_same_settings
from rxrx1_jax.report.tables import Cell, Table, gain, percent
from rxrx1_jax.training import predictions
from rxrx1_jax.training.run_dir import RunError, read_settings

BASE = "none"
DIFFERING = {"data.fold", "data.seed", "train.seed", *FREE}  # what runs of one table may differ in


def summary(runs: Mapping[str, Mapping[str, pa.Table]]) -> Table:
    """The table of {run: {method: predictions}}, grouped by what the methods may see."""
    tried = dict.fromkeys(name for tables in runs.values() for name in tables)
    names = [name for name in tried if all(name in tables for tables in runs.values())]
    rows: list[list[Cell]] = []
    for budget in BUDGETS:
        members = [name for name in names if find(name).budget == budget]
        rows += [[budget]] if members else []
        rows += [_row(name, runs) for name in members]
    head = ["method", "by site", "by well", "worst experiment", "gain by site, points"]
    return Table("Accuracy of the test sites, %", head, rows)


def _row(name: str, runs: Mapping[str, Mapping[str, pa.Table]]) -> list[Cell]:
    def scores(name: str) -> list[Score]:
        found = [predictions.accuracies(tables[name]) for tables in runs.values()]
        figures = [
            (a["site"]["all"], a["well"]["all"],
             statistics.worst_experiment(a["site"]["experiment"])[1])
            for a in found
        ]  # fmt: skip
        units = [Unit("", k, 0) for k in range(len(found))]
        return [dict(zip(units, column, strict=True)) for column in zip(*figures, strict=True)]

    cells: list[Cell] = [name, *map(percent, scores(name))]
    if name == BASE:
        return [*cells, ""]
    if len(runs) == 1:
        (tables,) = runs.values()
        return [*cells, gain(statistics.paired_difference(tables[name], tables[BASE]))]
    return [*cells, gain(statistics.compare(scores(name)[0], scores(BASE)[0]))]


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
    names = list(dict.fromkeys([BASE, *options.methods]))
    tables = {}
    try:
        for name in names:
            find(name)  # a wrong name is told before the work
        first = options.runs[0]
        for run in options.runs:
            check_same_settings(first, _to_share(first), run, _to_share(run))
        for i, run in enumerate(options.runs, 1):
            print(f"{run} ({i} of {len(options.runs)})", file=sys.stderr, flush=True)
            tables[str(run)] = corrections.predictions_of(run, names)
        text = summary(tables).markdown()
    except (RunError, DatasetError, ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text)
    if options.out:
        write_text(options.out, text)


if __name__ == "__main__":
    main()
