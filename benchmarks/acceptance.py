"""Is a synthetic screen like the real one, where the real one is known? Asked of finished runs.

    make screening
    python -m benchmarks.acceptance runs/worlds/1 --without=runs/worlds/0

reads the runs of a leaderboard with the methods of configs/screening.py, and those of the same
worlds without batch effects. A criterion is a mean over worlds that must lie between two bounds.
It holds where one-sided t tests (5 %) say so, and does not where the interval lies outside.

The second table says how often a right screen would pass: one that has the true mean of the table
and, over normal worlds and folds, the spreads of these runs.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rxrx1_jax.leaderboard.methods import CONTROLS_FOLDER, LDA12, Methods
from rxrx1_jax.leaderboard.scores import (
    Job,
    Outcome,
    by_site,
    load_correction,
    select,
    with_lda12,
)
from rxrx1_jax.methods.statistics import (
    SIGNIFICANT,
    Comparison,
    Score,
    by_fold,
    compare,
    difference,
    outside,
)
from rxrx1_jax.report.runs import load_run, shared_of
from rxrx1_jax.report.tables import Cell, Table, Value, gain

BASE, ADABN = "baseline", "adabn_experiment"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot say"
DESIGNS = ((4, 1), (8, 1), (8, 3), (16, 1), (16, 3))  # worlds, folds
DRAWS = 2000


class Criterion(NamedTuple):
    """In points. right: the mean of a right screen, for planning."""

    name: str
    low: float
    high: float
    right: float


GAP, NO_GAP, GAIN, LDA, SITE, JITTER, CUTMIX = CRITERIA = (
    Criterion("random by well - batch", 0, math.inf, 8.7),  # the paper's, by site
    Criterion("the same without batch effects", -3, 3, 0),
    Criterion(f"{ADABN} - {BASE}", 0, math.inf, 8),
    Criterion(f"{LDA12} - a third of {BASE}", -math.inf, 0, -5),
    Criterion(f"norm_site - {BASE}", -5, 5, 0),
    Criterion(f"gain_jitter - {BASE}", -2, math.inf, 1),
    Criterion(f"cutmix_80 - {BASE}_80", -2, math.inf, 1),
)


def finished(folder: Path) -> list[Outcome]:
    """The complete runs of a leaderboard's workdir, but for its controls."""
    found = []
    for file in sorted(folder.rglob("results.json")):
        method = file.relative_to(folder).parts[0]
        if method != CONTROLS_FOLDER:
            run = load_run(file.parent)
            found.append(Outcome(Job("", method, run.config["data.protocol"], run.unit), run, ""))
    if not select(found, BASE):
        raise ValueError(f"{folder}: no finished run of {BASE}; expected a leaderboard's folder")
    return found


def corrected(outcomes: Sequence[Outcome], name: str) -> Score:
    """Accuracy by site of a correction of the baseline, where it was tried."""
    runs = [o.run for o in select(outcomes, BASE) if o.run]
    found = {run.unit: load_correction(run.path, name) for run in runs}
    return {unit: accuracy["site"]["all"] for unit, accuracy in found.items() if accuracy}


def gap(outcomes: Sequence[Outcome]) -> Score:
    random, batch = (by_site(select(outcomes, BASE, p)) for p in ("random_well", "batch"))
    return difference(random, batch)


def measured(
    effects: Sequence[Outcome], without: Sequence[Outcome], data_dir: str = ""
) -> dict[Criterion, Score]:
    """The difference of each criterion, empty where there are no runs.

    data_dir: where the data are now; else where the runs found them.
    """
    base = by_site(select(effects, BASE))
    methods = Methods({BASE: {}}, {BASE: ()}, (), {}, {})
    where = data_dir or next(o.run.config["data.dir"] for o in effects if o.run)
    lda12 = by_site(select(with_lda12(methods, effects, where)[1], LDA12))
    return {
        GAP: gap(effects),
        NO_GAP: gap(without),
        GAIN: difference(corrected(effects, ADABN), base),
        LDA: difference(lda12, {unit: value / 3 for unit, value in base.items()}),
        **{
            one: difference(*(by_site(select(effects, name)) for name in one.name.split(" - ")))
            for one in (SITE, JITTER, CUTMIX)
        },
    }


def judge(criterion: Criterion, found: Comparison) -> str:
    low, high = criterion.low / 100, criterion.high / 100
    if outside(found, low, high) < SIGNIFICANT:
        return HOLDS
    return FAILS if found.high <= low or found.low >= high else UNDECIDED


def acceptance(found: Mapping[Criterion, Score], shared: float) -> Table:
    """shared: as in `compare`, for the folds of a single world."""
    rows: list[list[Cell]] = []
    for one, score in found.items():
        compared = compare(score, dict.fromkeys(score, 0.0), shared)
        count = f"{len({unit.world for unit in score})}, {len(by_fold(score))}"
        rows.append([one.name, _bounds(one), gain(compared), count, judge(one, compared)])
    head = ["accuracy by site", "must be, points", "is (95 % interval)", "worlds, folds", "verdict"]
    return Table("Acceptance of the screen", head, rows)


def _bounds(one: Criterion) -> str:
    if math.isinf(one.high):
        return f"above {one.low:g}"
    return f"below {one.high:g}" if math.isinf(one.low) else f"{one.low:+g} to {one.high:+g}"


def spreads(score: Score) -> tuple[float, float]:
    """Sd over worlds beyond that of their folds, and over the folds of a world.

    Where each world has one fold, the first holds both. Of one world it is 0.
    """
    worlds: dict[str, list[float]] = {}
    for (world, _), value in by_fold(score).items():
        worlds.setdefault(world, []).append(value)
    squares = sum(np.var(folds) * len(folds) for folds in worlds.values())
    degrees = sum(len(folds) - 1 for folds in worlds.values())
    within = squares / degrees if degrees else 0.0
    means = [np.mean(folds) for folds in worlds.values()]
    between = np.var(means, ddof=1) if len(means) > 1 else 0.0
    between -= within * np.mean([1 / len(folds) for folds in worlds.values()])
    return math.sqrt(max(between, 0.0)), math.sqrt(within)


def share_passed(
    one: Criterion, spread: tuple[float, float], worlds: int, folds: int, draws: int = DRAWS
) -> float:
    """How often a screen with the mean `right` passes."""
    rng = np.random.default_rng(0)
    over_worlds, over_folds = spread
    values = over_folds * rng.normal(size=(draws, worlds, folds)).mean(2)
    values += over_worlds * rng.normal(size=(draws, worlds)) + one.right / 100
    means, errors = values.mean(1), values.std(1, ddof=1) / math.sqrt(worlds)
    low, high = one.low / 100, one.high / 100
    found = (Comparison(*pair) for pair in zip(means, [worlds] * draws, errors, strict=True))
    return float(np.mean([outside(draw, low, high) < SIGNIFICANT for draw in found]))


def planning(found: Mapping[Criterion, Score]) -> Table:
    """How often each criterion, and all of them, would be passed by a right screen."""
    rows: list[list[Cell]] = []
    every = np.ones(len(DESIGNS))
    for one, score in found.items():
        if not score:
            continue
        spread = spreads(score)
        shares = [share_passed(one, spread, *design) for design in DESIGNS]
        every *= shares
        points = (Value(100 * x) for x in spread)
        rows.append([one.name, Value(one.right, signed=True), *points,
                     *(Value(100 * share, 0) for share in shares)])  # fmt: skip
    rows.append(["all, if independent", "", "", "", *(Value(100 * x, 0) for x in every.tolist())])
    designs = [f"{worlds} worlds x {folds}" for worlds, folds in DESIGNS]
    head = ["accuracy by site", "true mean", "sd over worlds", "sd over folds", *designs]
    notes = [
        f"{DRAWS} draws of normal worlds and folds; sd in points. Where each world has one fold,"
        " the sd over worlds holds that of folds, and more folds help more than this says."
    ]
    return Table("How often a right screen passes, %", head, rows, notes)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acceptance", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("leaderboard", type=Path, metavar="DIR", help="workdir of a leaderboard")
    parser.add_argument("--without", type=Path, required=True, metavar="DIR",
                        help="that of the worlds without batch effects")  # fmt: skip
    parser.add_argument("--data_dir", default="", metavar="DIR", help="where the data are now")
    options = parser.parse_args(arguments)
    try:
        if options.without.resolve() == options.leaderboard.resolve():
            raise ValueError(f"--without={options.without}: the same runs, with batch effects")
        effects, without = finished(options.leaderboard), finished(options.without)
        found = measured(effects, without, options.data_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shared = shared_of(o.run for o in effects if o.run)
    print(acceptance(found, shared).markdown())
    print(planning(found).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
