"""What scores over worlds, folds and seeds say of a difference, and what they cannot say.

A world is a dataset. The seeds of a fold share all their data, so a fold counts once, with the mean
of its seeds. The folds of one world share training data, and their intervals are wider for it.
Scores over several worlds are compared world by world, with the mean of each. Fewer than LEAST
independent units have no interval and no p-value: NaN. Needs no JAX.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95  # of all intervals
SIGNIFICANT = 1 - LEVEL
LEAST = 3  # independent units that an interval takes


class Unit(NamedTuple):
    """What a run was measured on. Seeds of a fold share its training and test sites."""

    world: str  # name of the dataset
    fold: int
    seed: int  # of the training


Score = Mapping[Unit, float]  # fractions


class Summary(NamedTuple):
    """All NaN of no scores."""

    mean: float  # over the independent units
    over_units: float  # sd of their means; NaN for one unit
    over_seeds: float  # sd of the seeds of a fold, pooled over folds; NaN for one seed


class Comparison(NamedTuple):
    """A difference of two scores over the units of both; all NaN where n is 0."""

    mean: float
    n: int  # independent units: worlds, or the folds of one
    # Of the mean. NaN, as what follows, for fewer than LEAST units, and where all are equal.
    error: float = math.nan
    low: float = math.nan  # of the t interval
    high: float = math.nan
    p: float = math.nan  # two-sided, of a difference of 0


def units_of(scores: Iterable[Score]) -> str:
    """What the independent units of scores are: "worlds", or the "folds" of a single one."""
    return "worlds" if len({unit.world for score in scores for unit in score}) > 1 else "folds"


def worst_experiment(accuracy: Mapping[str, float]) -> tuple[str, float]:
    """(experiment, fraction) of the lowest accuracy; the first name among equals."""
    if not accuracy:
        raise ValueError("no experiments: expected the accuracy of one at least")
    return min(accuracy.items(), key=lambda pair: (pair[1], pair[0]))


def by_fold(score: Score) -> dict[tuple[str, int], float]:
    """{(world, fold): mean over its seeds}, in order."""
    return _means((unit[:2], score[unit]) for unit in sorted(score))


def by_world(score: Score) -> dict[str, float]:
    """{world: mean over its folds}, in order."""
    return _means((world, value) for (world, _), value in by_fold(score).items())


def independent(score: Score) -> list[float]:
    """The mean of each world; of a single world the mean of each fold."""
    worlds = by_world(score)
    return list((worlds if len(worlds) > 1 else by_fold(score)).values())


def difference(a: Score, b: Score) -> Score:
    """a - b over the units of both."""
    return {unit: a[unit] - b[unit] for unit in a.keys() & b.keys()}


def summarise(score: Score) -> Summary:
    """Mean and spreads of a score: over seeds is what training alone does."""
    if not score:
        return Summary(math.nan, math.nan, math.nan)
    means = by_fold(score)
    squares = sum((value - means[unit[:2]]) ** 2 for unit, value in score.items())
    degrees = len(score) - len(means)
    seeds = math.sqrt(squares / degrees) if degrees else math.nan
    units = independent(score)
    return Summary(float(np.mean(units)), _sd(units), seeds)


def compare(a: Score, b: Score, shared: float) -> Comparison:
    """a - b over the units of both, with Student's t interval and p-value (n - 1 degrees).

    Over worlds the variance of the mean is s^2 / n. Over the folds of one world it is
    s^2 (1 / n + shared), which allows for the training data that they share: Nadeau and Bengio,
    "Inference for the generalization error", Machine Learning 52 (2003), equation 8.

    Args:
      shared: test sites per training site, of a run.
    """
    from scipy.special import stdtr, stdtrit  # here: the commands' --help needs none

    pairs = difference(a, b)
    if not pairs:
        return Comparison(math.nan, 0)
    values = independent(pairs)
    mean, n = float(np.mean(values)), len(values)
    overlap = shared if units_of([pairs]) == "folds" else 0.0
    # A few sites give equal differences by chance: that is no certainty.
    if n < LEAST or np.ptp(values) < 1e-12:
        return Comparison(mean, n)
    error = _sd(values) * math.sqrt(1 / n + overlap)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = float(2 * stdtr(n - 1, -abs(mean) / error))
    return Comparison(mean, n, error, mean - half, mean + half, p)


def outside(found: Comparison, low: float, high: float) -> float:
    """p-value of a difference of `low` or less, or of `high` or more; small: it is between them.

    Two one-sided t tests (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657); one,
    where the other bound is infinite. NaN where the comparison has no interval.
    """
    from scipy.special import stdtr

    room = min(found.mean - low, high - found.mean)
    return float(stdtr(found.n - 1, -room / max(found.error, 1e-12)))  # 0: all are equal


def wilson(right: Any, n: Any) -> tuple[Any, Any]:
    """Interval of a share right / n, of numbers or arrays; (NaN, NaN) for n = 0.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22, 209. right need not be whole.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    right, n = np.asarray(right, np.float64), np.where(np.asarray(n) > 0, n, math.nan)
    centre = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(right * (n - right) / n + z**2 / 4)
    return centre - half, centre + half


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are, in the order given; NaN stays and counts nothing.

    The step-down of Holm 1979 (Scandinavian Journal of Statistics 6, 65): of all hypotheses that
    are true, one or more fall below a level with at most that probability.
    """
    found = np.array(p, np.float64)
    order = np.argsort(found)[: int((~np.isnan(found)).sum())]
    steps = found[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return found.tolist()


def ratio(a: Score, b: Score) -> float:
    """Ratio of the means over the units of both; NaN without any or over zero."""
    units = a.keys() & b.keys()
    below = sum(b[unit] for unit in units)
    return sum(a[unit] for unit in units) / below if below else math.nan


def _means(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """{group: mean of its values}, groups in the order in which they come."""
    groups: dict[Any, list[float]] = {}
    for group, value in pairs:
        groups.setdefault(group, []).append(value)
    return {group: float(np.mean(members)) for group, members in groups.items()}


def _sd(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
