"""Any runs on the same data, method against method: accuracies and paired gains."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rxrx1_jax.methods.statistics import compare, summarise, worst_experiment
from rxrx1_jax.report import table1
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import Group, shared_of
from rxrx1_jax.report.tables import Cell, Links, Table, Value, gain, percent

FIGURES: dict[str, Callable[[Mapping[str, Any]], float]] = {  # of predictions.accuracies
    "by well": lambda a: a["well"]["all"],
    "top-5": lambda a: a["top5"],
    "cell-type mean": lambda a: float(np.mean(list(a["site"]["cell_type"].values()))),
    "worst experiment": lambda a: worst_experiment(a["site"]["experiment"])[1],
}
GAIN = "gain by site, points (95 % interval)"
NOTE = (
    "± is the standard deviation over folds (n - 1) of the means over seeds. Cell-type mean: each"
    " cell type counts the same. Worst experiment: its accuracy by site."
)


def baseline_of(groups: Sequence[Group], run: Path | None) -> Group:
    """The group that the others are compared with: that of `run`, or the first."""
    if run is None:
        return groups[0]
    found = [of for of in groups if any(r.path.resolve() == run.resolve() for r in of.runs)]
    if not found:
        raise ReportError(f"--baseline={run}: on other data than {groups[0].runs[0].path}")
    return found[0]


def gains(groups: Sequence[Group], baseline: Group) -> list[Value | None]:
    """Of each group over the baseline's method on the same split; None of that method itself."""
    base = {str(of.task): of.by_site for of in groups if of.method == baseline.method}
    shared = shared_of(run for of in groups for run in of.runs)
    return [
        gain(compare(of.by_site, base.get(str(of.task), {}), shared))
        if of.method != baseline.method else None
        for of in groups
    ]  # fmt: skip


def tables(groups: Sequence[Group], baseline: Group) -> dict[str, Table]:
    """The comparison, and accuracy by cell type."""
    rows: list[list[Cell]] = []
    for of, more in zip(groups, gains(groups, baseline), strict=True):
        figures = (percent(of.score(figure)) for figure in FIGURES.values())
        runs = Links(tuple(
            (f"{run.unit.fold}.{run.unit.seed}", run.path)
            for run in sorted(of.runs, key=lambda run: run.unit)
        ))  # fmt: skip
        rows.append([of.label, percent(of.by_site), more or "baseline", *figures, runs])
    notes = [
        NOTE,
        "Gain: over the baseline on the same split, fold and seed, in points, with its t interval "
        "over folds, which allows for the training data that they share (Nadeau and Bengio 2003); "
        "– below three folds. Runs: fold.seed.",
    ]
    head = ["settings", "by site", GAIN, *FIGURES, "runs"]
    kinds = [line.cells() for line in table1.lines_of(groups, "site")]
    return {
        "comparison": Table("Test accuracy, %", head, rows, notes),
        "cell-types": Table(
            "Test accuracy by site of each cell type, %", ["settings", *table1.HEAD[1:]], kinds,
            [table1.SPREAD_NOTE.partition(" Diff")[0]],
        ),
    }  # fmt: skip


def headline(groups: Sequence[Group], baseline: Group) -> str:
    """The result in a sentence: of the method with the highest accuracy beside the baseline."""
    others = [
        (summarise(of.by_site).mean, of.label, more)
        for of, more in zip(groups, gains(groups, baseline), strict=True)
        if more is not None and not math.isnan(more.value)
    ]
    if not others:
        return "No two methods have a split, fold and seed in common: there is no gain to state."
    _, label, more = max(others, key=lambda other: other[0])
    first = "Highest beside the baseline: " if len(others) > 1 else ""
    return f"{first}{label} is {more.apart(baseline.label)}."
