"""The runs of the leaderboard -> scores of its rows, and verdicts on its controls."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rxrx1_jax.leaderboard import assess
from rxrx1_jax.leaderboard.methods import CONTROLS_FOLDER, Methods
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.evidence import BUDGETS
from rxrx1_jax.methods.statistics import Score, Unit, compare
from rxrx1_jax.report.files import read_predictions
from rxrx1_jax.report.runs import FinishedRun
from rxrx1_jax.report.tables import gain
from rxrx1_jax.training.predictions import accuracies

FEWEST = 3  # runs that a verdict needs; with two the interval is too wide to mean anything
PROTOCOLS = ("batch", "random_site", "random_well")
NONE = "none"  # no correction: the network's own predictions


class Job(NamedTuple):
    """One run of the leaderboard, and what is asked of it once trained."""

    control: str  # name of the control; "" for the leaderboard itself
    trained: str
    protocol: str
    unit: Unit
    assessed: tuple[str, ...] = ()  # of assess: corrections, and the diagnosis

    @property
    def name(self) -> str:
        """Its place in WORKDIR: (CONTROL/)METHOD/PROTOCOL-FOLD-SEED."""
        run = f"{self.protocol}-{self.unit.fold}-{self.unit.seed}"
        return "/".join(filter(None, (self.control, self.trained, run)))

    def path(self, workdir: Path) -> Path:
        return (workdir / CONTROLS_FOLDER if self.control else workdir) / self.name


class Outcome(NamedTuple):
    """What became of a job."""

    job: Job
    run: FinishedRun | None  # None where it is not complete
    why: str  # it is not complete, or not assessed


class Row(NamedTuple):
    """A method of the leaderboard: how it was trained, and what corrected it afterwards."""

    trained: str
    correction: str
    budget: str
    accuracy: dict[Unit, dict[str, Any]]  # as predictions.accuracies gives them

    @property
    def name(self) -> str:
        return self.trained + (f" + {self.correction}" if self.correction != NONE else "")

    @property
    def by_site(self) -> Score:
        return self.score(lambda a: a["site"]["all"])

    def score(self, part: Callable[[Mapping[str, Any]], float]) -> Score:
        """The figure that `part` takes from the accuracies of each run."""
        return {unit: part(accuracy) for unit, accuracy in self.accuracy.items()}


def make_rows(methods: Methods, outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows of the leaderboard that have a run, by budget, then as the methods file has them."""
    rows = []
    for name in methods.trained:
        runs = {o.job.unit: o.run for o in select(outcomes, name) if o.run}
        for correction in (NONE, *methods.corrections[name]):
            found = {
                unit: run.accuracy if correction == NONE else load_correction(run.path, correction)
                for unit, run in runs.items()
            }
            accuracy = {unit: value for unit, value in found.items() if value is not None}
            if accuracy:
                budgets = methods.budgets[name], find(correction).budget
                wider = max(budgets, key=BUDGETS.index)
                rows.append(Row(name, correction, wider, accuracy))
    return sorted(rows, key=lambda row: BUDGETS.index(row.budget))


def select(
    outcomes: Sequence[Outcome], trained: str, protocol: str = "batch", control: str = ""
) -> list[Outcome]:
    wanted = (control, trained, protocol)
    return [o for o in outcomes if (o.job.control, o.job.trained, o.job.protocol) == wanted]


def gap_scores(methods: Methods, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Score]]:
    """{method: {protocol: accuracy by site}} of those with runs on the batch and a random split."""
    found = {
        name: {protocol: by_site(select(outcomes, name, protocol)) for protocol in PROTOCOLS}
        for name in methods.gap
    }
    return {n: of for n, of in found.items() if of["batch"] and sum(map(bool, of.values())) > 1}


def by_site(outcomes: Sequence[Outcome]) -> Score:
    """Accuracy of the runs that are complete."""
    return {o.job.unit: o.run.accuracy["site"]["all"] for o in outcomes if o.run}


def diagnoses(outcomes: Sequence[Outcome]) -> diagnosis.Figures:
    """{column of rxrx1_jax.diagnose: (mean over runs, mean of chance)} of assessed runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        if outcome.run and assess.is_assessed(outcome.run.path, [assess.DIAGNOSIS]):
            figures = assess.read(outcome.run.path)[assess.DIAGNOSIS].get("figures", {})
            for column, pair in figures.items():
                found.setdefault(column, []).append(pair)
    return diagnosis.averages(found)


def load_correction(path: Path, correction: str) -> dict[str, Any] | None:
    """Accuracies of a run's stored correction; None where it is missing, refused or out of date."""
    if not assess.is_assessed(path, [correction]) or assess.read(path)[correction]["refused"]:
        return None
    return accuracies(read_predictions(path / "corrections" / f"{correction}.parquet"))


def verdict(expected: str, batch: Score, random: Score, chance: float) -> tuple[str, bool | None]:
    """What a control showed, and whether it is what it must show (None: too few runs to say).

    expected: "no gap" (the interval of random - batch includes 0), "gap" (it is above 0), or
    "chance" (the interval of either accuracy includes chance).
    """
    if expected == "chance":
        said, held = [], True
        for name, score in (("batch", batch), ("random", random)):
            found = compare(score, dict.fromkeys(score, chance))
            if found.n < FEWEST or math.isnan(found.low):
                return "too few runs", None
            low, high = found.low + chance, found.high + chance
            said.append(f"{name} {100 * low:.1f} to {100 * high:.1f} %")
            held &= low <= chance <= high
        return f"{', '.join(said)}; chance {100 * chance:.1f} %", held
    found = compare(random, batch)
    if found.n < FEWEST or math.isnan(found.low):
        return "too few runs", None
    held = found.low > 0 if expected == "gap" else found.low <= 0 <= found.high
    return f"gap {gain(found)}", held
