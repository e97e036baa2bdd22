"""The arithmetic of the leaderboard: runs by (fold, seed) -> means, spreads, gains, gaps, verdicts.

A score is {(fold, seed): fraction}. Seeds of a fold share its training and test sites, so that
spread over seeds is what training alone does, and spread over folds also what the experiments do.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from rxrx1_jax.leaderboard import assess
from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.methods import statistics
from rxrx1_jax.methods.evidence import BUDGETS, find
from rxrx1_jax.methods.statistics import PairedSpread
from rxrx1_jax.report import runs as report_runs
from rxrx1_jax.report.runs import Run
from rxrx1_jax.training import predictions

FEWEST = 3  # runs that a verdict needs; with two the interval is too wide to mean anything
NONE = "none"  # no correction: the network's own predictions
Key = tuple[int, int]  # fold, seed
Score = Mapping[Key, float]


class Row(NamedTuple):
    """A method of the leaderboard: how it was trained, and what corrected it afterwards."""

    trained: str
    correction: str
    budget: str
    accuracy: dict[Key, dict[str, Any]]  # as predictions.accuracies gives them

    @property
    def name(self) -> str:
        return self.trained + (f" + {self.correction}" if self.correction != NONE else "")

    @property
    def by_site(self) -> dict[Key, float]:
        return {key: a["site"]["all"] for key, a in self.accuracy.items()}

    @property
    def by_well(self) -> dict[Key, float]:
        return {key: a["well"]["all"] for key, a in self.accuracy.items()}

    @property
    def top5(self) -> dict[Key, float]:
        return {key: a["top5"] for key, a in self.accuracy.items()}

    @property
    def by_cell_type(self) -> dict[Key, float]:
        """By site, each cell type counting the same (macro average)."""
        return {
            key: float(np.mean(list(a["site"]["cell_type"].values())))
            for key, a in self.accuracy.items()
        }

    @property
    def worst_experiment(self) -> dict[Key, float]:
        return {
            key: statistics.worst_experiment(a["site"]["experiment"])[1]
            for key, a in self.accuracy.items()
        }


class Outcome(NamedTuple):
    """A run of the leaderboard or of a control, and what became of it."""

    control: str  # "" for the leaderboard itself
    trained: str
    protocol: str
    fold: int
    seed: int
    run: Run | None  # None where it is not complete
    why: str  # it is not complete, or not assessed

    @property
    def key(self) -> Key:
        return self.fold, self.seed


class Summary(NamedTuple):
    mean: float  # over folds, of means over seeds
    over_folds: float  # sd of the means over seeds; NaN for one fold
    over_seeds: float  # sd of the seeds of a fold, pooled over folds; NaN for one seed
    n: int


def budget_of(trained_budget: str, correction: str) -> str:
    """The wider of the two budgets of information."""
    return max(trained_budget, find(correction).budget, key=BUDGETS.index)


def make_rows(methods: Methods, outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows of the leaderboard that have a run, by budget, then as the methods file has them."""
    rows = []
    for name in methods.trained:
        runs = {o.key: o.run for o in select(outcomes, name) if o.run}
        for correction in (NONE, *methods.corrections[name]):
            found = {
                key: run.accuracy if correction == NONE else load_correction(run.path, correction)
                for key, run in runs.items()
            }
            accuracy = {key: value for key, value in found.items() if value is not None}
            if accuracy:
                budget = budget_of(methods.budgets[name], correction)
                rows.append(Row(name, correction, budget, accuracy))
    return sorted(rows, key=lambda row: BUDGETS.index(row.budget))


def select(
    outcomes: Sequence[Outcome], trained: str, protocol: str = "batch", control: str = ""
) -> list[Outcome]:
    wanted = (control, trained, protocol)
    return [o for o in outcomes if (o.control, o.trained, o.protocol) == wanted]


def by_site(outcomes: Sequence[Outcome], unit: str = "site") -> dict[Key, float]:
    """Accuracy of the runs that are complete."""
    return {o.key: o.run.accuracy[unit]["all"] for o in outcomes if o.run}


def diagnoses(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """{column of rxrx1_jax.diagnose: (mean over runs, mean of chance)} of assessed runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        if outcome.run and assess.is_assessed(outcome.run.path, [assess.DIAGNOSIS]):
            figures = assess.read(outcome.run.path)[assess.DIAGNOSIS].get("figures", {})
            for column, pair in figures.items():
                found.setdefault(column, []).append(pair)
    return {
        column: (float(np.mean([v for v, _ in pairs])), float(np.mean([c for _, c in pairs])))
        for column, pairs in found.items()
    }


def load_correction(path: Path, correction: str) -> dict[str, Any] | None:
    """Accuracies of a run's stored correction; None where it is missing, refused or out of date."""
    if not assess.is_assessed(path, [correction]) or assess.read(path)[correction]["refused"]:
        return None
    table = pq.read_table(
        path / "corrections" / f"{correction}.parquet", columns=report_runs.PREDICTION_COLUMNS
    )
    return predictions.accuracies(table)


def by_fold(score: Score) -> dict[int, float]:
    """{fold: mean over its seeds}."""
    folds = sorted({fold for fold, _ in score})
    return {f: float(np.mean([v for (fold, _), v in score.items() if fold == f])) for f in folds}


def summarise(score: Score) -> Summary:
    """Mean and spreads of a score, of one run or more."""
    folds = statistics.spread(list(by_fold(score).values()))
    variances = []
    for fold in {fold for fold, _ in score}:
        values = [v for (f, _), v in score.items() if f == fold]
        if len(values) > 1:
            # Pooled: weighted by degrees of freedom.
            variances.append((np.var(values, ddof=1), len(values) - 1))
    seeds = math.nan
    if variances:
        squares, degrees = zip(*variances, strict=True)
        seeds = math.sqrt(np.average(squares, weights=degrees))
    return Summary(folds.mean, folds.sd, seeds, len(score))


def difference(a: Score, b: Score) -> PairedSpread | None:
    """a - b over the (fold, seed) that both have, `statistics.paired_over_folds`; None: none."""
    keys = sorted(a.keys() & b.keys())
    if not keys:
        return None
    return statistics.paired_over_folds({k: a[k] for k in keys}, {k: b[k] for k in keys})


def ratio(a: Score, b: Score) -> float:
    """Ratio of the means over the (fold, seed) that both have; NaN without any or over zero."""
    keys = a.keys() & b.keys()
    below = sum(b[key] for key in keys)
    return sum(a[key] for key in keys) / below if below else math.nan


def verdict(expected: str, batch: Score, random: Score, chance: float) -> tuple[str, bool | None]:
    """What a control showed, and whether it is what it must show (None: too few runs to say).

    expected: "no gap" (the interval of random - batch includes 0), "gap" (it is above 0), or
    "chance" (the interval of either accuracy includes chance).
    """
    if expected == "chance":
        said, held = [], True
        for name, score in (("batch", batch), ("random", random)):
            found = difference(score, dict.fromkeys(score, chance))
            if found is None or found.n < FEWEST:
                return "too few runs", None
            low, high = found.low + chance, found.high + chance
            said.append(f"{name} {100 * low:.1f} to {100 * high:.1f} %")
            held &= low <= chance <= high
        return f"{', '.join(said)}; chance {100 * chance:.1f} %", held
    found = difference(random, batch)
    if found is None or found.n < FEWEST:
        return "too few runs", None
    held = found.low > 0 if expected == "gap" else found.low <= 0 <= found.high
    return f"gap {100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})", held
