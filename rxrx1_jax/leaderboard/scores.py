"""The runs of the leaderboard -> scores of its rows, and verdicts on its controls."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rxrx1_jax.data import records, splits
from rxrx1_jax.leaderboard import assess
from rxrx1_jax.leaderboard.methods import CONTROLS_FOLDER, LDA12, Methods
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import find, reference
from rxrx1_jax.methods.evidence import BUDGETS, budget_of
from rxrx1_jax.methods.lda12 import lda12
from rxrx1_jax.methods.statistics import (
    SIGNIFICANT,
    Comparison,
    Score,
    Unit,
    compare,
    difference,
    outside,
)
from rxrx1_jax.report.files import read_predictions
from rxrx1_jax.report.runs import FinishedRun, shared_of
from rxrx1_jax.report.tables import gain
from rxrx1_jax.training.predictions import accuracies

MARGIN = 0.03  # a difference below it is none: 3 points
PROTOCOLS = ("batch", "random_site", "random_well")
NONE = "none"  # no correction: the network's own predictions


class Job(NamedTuple):
    """One run of the leaderboard, and what is asked of it once trained."""

    control: str  # name of the control; "" for the leaderboard itself
    trained: str
    protocol: str
    unit: Unit
    assessed: tuple[str, ...] = ()  # of assess: corrections, and the diagnosis
    folder: str = ""  # of a further world: its name

    @property
    def name(self) -> str:
        """Its place in WORKDIR: (CONTROL/)METHOD/(WORLD/)PROTOCOL-FOLD-SEED."""
        run = f"{self.protocol}-{self.unit.fold}-{self.unit.seed}"
        return "/".join(filter(None, (self.control, self.trained, self.folder, run)))

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
    training: Score  # accuracy on training batches at the end; of rows without correction
    shared: float  # test sites per training site
    paths: Mapping[Unit, Path] = {}  # folders of its runs

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
                budgets = {methods.budgets[name], find(correction).budget}
                if name != LDA12:
                    budgets |= {budget_of(run.uses) for run in runs.values()}
                wider = max(budgets, key=BUDGETS.index)
                training = {u: t for u, run in runs.items() for t in run.training}
                own = training if correction == NONE else {}
                paths = {unit: runs[unit].path for unit in accuracy if name != LDA12}
                shared = shared_of(runs.values())
                rows.append(Row(name, correction, wider, accuracy, own, shared, paths))
    return sorted(rows, key=lambda row: (BUDGETS.index(row.budget), row.trained != LDA12))


def with_lda12(
    methods: Methods, outcomes: Sequence[Outcome], data_dir: str
) -> tuple[Methods, list[Outcome]]:
    """The same with LDA-12 on the data of the baseline's runs, for all tables but the controls'.

    Raises DatasetError, ConfigError, SplitError: a dataset that is not there, or another one.
    """

    opened = functools.cache(records.open_images)
    found = []
    for job, run, _ in outcomes:
        if not run or job.control or job.trained != methods.baseline:
            continue
        fields = {name.partition(".") for name in run.config}
        data = {name: run.config[f"data.{name}"] for part, _, name in fields if part == "data"}
        images = opened(data_dir, data["name"])
        split = splits.configured(images.sites, data)
        pixels = images.image_shape[1] * images.image_shape[2]
        accuracy = accuracies(lda12(images.sites, pixels, split, data["protocol"]))
        # Its path is of no run: what was assessed of the baseline's is not its own.
        own = run._replace(path=Path("nowhere"), accuracy=accuracy, metrics=[])
        found.append(Outcome(job._replace(trained=LDA12, assessed=()), own, ""))
    return methods._replace(
        trained=methods.trained | {LDA12: {}},
        corrections=methods.corrections | {LDA12: ()},
        gap=(LDA12, *methods.gap) if methods.gap else (),
        budgets=methods.budgets | {LDA12: BUDGETS[0]},
    ), [*found, *outcomes]


def gains(methods: Methods, rows: Sequence[Row]) -> dict[str, tuple[Score, Comparison]]:
    """{row: (differences, comparison)} with the row of the baseline that reads out as it does.

    The baseline itself, and a row without such a one, has no difference.
    """
    by_name = {(row.trained, row.correction): row.by_site for row in rows}
    found = {}
    for row in rows:
        base = by_name.get((methods.baseline, reference(row.correction)), {})
        pairs = {} if row.name == methods.baseline else difference(row.by_site, base)
        found[row.name] = pairs, compare(pairs, dict.fromkeys(pairs, 0.0), row.shared)
    return found


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
    file = path / "corrections" / f"{correction}.parquet"
    return accuracies(read_predictions(file, "remove it and start the leaderboard again"))


def verdict(
    expected: str, batch: Score, random: Score, chance: float, shared: float
) -> tuple[str, bool | None]:
    """What a control showed, and whether it is what it must show (None: the runs cannot say).

    "gap": the interval of random - batch is above 0. "no gap": random - batch, and "chance": either
    accuracy minus chance, is smaller than MARGIN by two one-sided tests. It is not what it must be
    where an interval of the others excludes that.
    """
    if expected == "chance":
        even = {unit: chance for unit in batch.keys() | random.keys()}
        found = [compare(score, even, shared) for score in (batch, random)]
        said = ", ".join(f"{name} - chance {gain(one)}"
                         for name, one in zip(("batch", "random"), found, strict=True))  # fmt: skip
    else:
        found = [compare(random, batch, shared)]
        said = f"gap {gain(found[0])}"
    if expected == "gap":
        holds, fails = found[0].low > 0, found[0].high <= 0
    else:
        holds = all(outside(one, -MARGIN, MARGIN) < SIGNIFICANT for one in found)
        fails = any(one.low > 0 or one.high < 0 for one in found)
    return said, True if holds else False if fails else None
