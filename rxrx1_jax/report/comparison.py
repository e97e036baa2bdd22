"""Any runs on the same data, method against method: accuracies and paired gains."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rxrx1_jax.methods.evidence import BUDGETS, budget_of
from rxrx1_jax.methods.statistics import (
    SIGNIFICANT,
    Comparison,
    Unit,
    compare,
    holm,
    units_of,
    worst_experiment,
)
from rxrx1_jax.report import table1
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import Group, shared_of
from rxrx1_jax.report.tables import ADJUSTED, Cell, Links, Table, Value, gain, percent

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


RUNS = {"folds": "fold.seed", "worlds": "world:fold.seed"}  # units of a table -> names of its runs


def name_of(unit: Unit, units: str) -> str:
    """Of a run in a table."""
    world = f"{unit.world}:" if units == "worlds" else ""
    return f"{world}{unit.fold}.{unit.seed}"


def baseline_of(groups: Sequence[Group], run: Path | None) -> Group:
    """The group that the others are compared with: that of `run`, or the first."""
    if run is None:
        return groups[0]
    found = [of for of in groups if any(r.path.resolve() == run.resolve() for r in of.runs)]
    if not found:
        raise ReportError(f"--baseline={run}: on other data than {groups[0].runs[0].path}")
    return found[0]


def gains(groups: Sequence[Group], baseline: Group) -> list[Comparison | None]:
    """Of each group over the baseline's method on the same split; None of that method itself."""
    base = {str(of.task): of.by_site for of in groups if of.method == baseline.method}
    shared = shared_of(run for of in groups for run in of.runs)
    return [
        compare(of.by_site, base.get(str(of.task), {}), shared)
        if of.method != baseline.method else None
        for of in groups
    ]  # fmt: skip


def tables(groups: Sequence[Group], baseline: Group) -> dict[str, Table]:
    """The comparison, and accuracy by cell type."""
    rows: list[list[Cell]] = []
    found, units = gains(groups, baseline), units_of(of.by_site for of in groups)
    adjusted = holm([of.p if of else math.nan for of in found])
    for of, more, p in zip(groups, found, adjusted, strict=True):
        figures = (percent(of.score(figure)) for figure in FIGURES.values())
        runs = Links(tuple(
            (name_of(run.unit, units), run.path)
            for run in sorted(of.runs, key=lambda run: run.unit)
        ))  # fmt: skip
        of_gain: list[Cell] = [gain(more), Value(p, 3)] if more else ["baseline", ""]
        rows.append(
            [of.label, percent(of.by_site), percent(of.training), *of_gain, *figures, runs]
        )
    shared = "which allows for the training data that they share (Nadeau and Bengio 2003)"
    notes = [
        NOTE.replace("over folds", f"over {units}"),
        "Gain: over the baseline on the same split, fold and seed, in points, with its t interval "
        f"over {units}{f', {shared}' if units == 'folds' else ''}; – below three {units}. "
        f"{ADJUSTED}: adjusted for all rows of the table. Training: accuracy on the last training "
        f"batches. Runs: {RUNS[units]}.",
    ]
    budgets = {of.label: budget_of({use for run in of.runs for use in run.uses}) for of in groups}
    if wider := [f"{of}: {seen}" for of, seen in budgets.items() if seen != BUDGETS[0]]:
        notes.append("Training saw more than its own sites, so compare rows of one budget alone. "
                     f"{'; '.join(wider)}; others: {BUDGETS[0]}.")  # fmt: skip
    head = ["settings", "by site", "training", GAIN, ADJUSTED, *FIGURES, "runs"]
    kinds = [line.cells() for line in table1.lines_of(groups, "site")]
    return {
        "comparison": Table("Test accuracy, %", head, rows, notes),
        "cell-types": Table(
            "Test accuracy by site of each cell type, %", ["settings", *table1.HEAD[1:]], kinds,
            [table1.SPREAD_NOTE.partition(" Diff")[0].replace("over folds", f"over {units}")],
        ),
    }  # fmt: skip


def headline(groups: Sequence[Group], baseline: Group) -> str:
    """The result in a sentence."""
    found = {of.label: more for of, more in zip(groups, gains(groups, baseline), strict=True)
             if more is not None and more.n}  # fmt: skip
    if not found:
        return "No two methods have a split, fold and seed in common: there is no gain to state."
    if len(found) == 1:
        ((label, one),) = found.items()
        return f"{label} is {gain(one).apart(baseline.label)}."
    return told_apart(found, baseline.label, units_of(of.by_site for of in groups))


def told_apart(found: Mapping[str, Comparison], baseline: str, units: str) -> str:
    """Which of several rows differ from the baseline. None is chosen by its rank."""
    tested = {name: one for name, one in found.items() if not math.isnan(one.p)}
    if not tested:
        return f"No row can be told from {baseline}: that takes three {units}."
    adjusted = holm([one.p for one in tested.values()])
    sure = {name: one.mean > 0 for (name, one), p in zip(tested.items(), adjusted, strict=True)
            if p < SIGNIFICANT}  # fmt: skip
    better, worse = ([name for name, above in sure.items() if above is up] for up in (True, False))
    return (
        f"{len(better)} of {len(tested)} rows are better than {baseline} and {len(worse)} worse"
        f" ({ADJUSTED} below {SIGNIFICANT:.2f}){': ' if better else ''}{'; '.join(better)}."
        + (f" Worse: {'; '.join(worse)}." if worse else "")
    )
