"""Uncertainty of accuracies: intervals over wells, spread over folds and seeds, methods in pairs.

An interval over wells holds for the network and the test experiments at hand: it says what other
wells of these experiments could have given. What other experiments or another training could have
given is seen in the folds and seeds alone. Needs no JAX.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from rxrx1_jax.data.embeddings import check_finite

LEVEL = 0.95  # of all intervals
LEAST = 3  # differences, or wells, that an interval takes
BLOCK = 2**22  # counts of resampled wells held at once: 32 MiB


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float


class Unit(NamedTuple):
    """What a run was measured on. Seeds of a fold share its training and test sites."""

    world: str  # name of the dataset
    fold: int
    seed: int  # of the training


Score = Mapping[Unit, float]  # fractions


class Summary(NamedTuple):
    mean: float  # over folds, of means over seeds
    over_folds: float  # sd of the means over seeds; NaN for one fold
    over_seeds: float  # sd of the seeds of a fold, pooled over folds; NaN for one seed
    n: int  # all NaN where this is 0


class Comparison(NamedTuple):
    """A difference of two scores over the units of both; all NaN where n is 0."""

    mean: float
    sd: float  # n - 1 in the denominator; NaN for a single pair
    low: float  # of the t interval; NaN for fewer than LEAST pairs, or if all are equal and not 0
    high: float
    n: int


def worst_experiment(accuracy: Mapping[str, float]) -> tuple[str, float]:
    """(experiment, fraction) of the lowest accuracy; the first name among equals."""
    if not accuracy:
        raise ValueError("no experiments: expected the accuracy of one at least")
    return min(accuracy.items(), key=lambda pair: (pair[1], pair[0]))


def by_fold(score: Score) -> dict[tuple[str, int], float]:
    """{(world, fold): mean over its seeds}, in order."""
    seeds: dict[tuple[str, int], list[float]] = {}
    for unit in sorted(score):
        seeds.setdefault(unit[:2], []).append(score[unit])
    return {fold: float(np.mean(values)) for fold, values in seeds.items()}


def summarise(score: Score) -> Summary:
    """Mean and spreads of a score: over seeds is what training alone does."""
    if not score:
        return Summary(math.nan, math.nan, math.nan, 0)
    means = by_fold(score)
    squares = sum((value - means[unit[:2]]) ** 2 for unit, value in score.items())
    degrees = len(score) - len(means)
    seeds = math.sqrt(squares / degrees) if degrees else math.nan
    folds = list(means.values())
    return Summary(float(np.mean(folds)), _sd(folds), seeds, len(score))


def compare(a: Score, b: Score) -> Comparison:
    """a - b over the units of both: mean, sd and Student's t interval with n - 1 degrees.

    The interval takes the pairs for independent. Training sets of folds overlap, which makes it
    too narrow (Nadeau and Bengio, "Inference for the generalization error", 2003).
    """
    units = sorted(a.keys() & b.keys())
    if not units:
        return Comparison(math.nan, math.nan, math.nan, math.nan, 0)
    pairs = [a[unit] - b[unit] for unit in units]
    mean, sd, n = float(np.mean(pairs)), _sd(pairs), len(pairs)
    # A few sites give equal differences by chance: that is no certainty.
    known = n >= LEAST and (np.ptp(pairs) > 1e-12 or abs(mean) < 1e-12)
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * sd / math.sqrt(n) if known else math.nan
    return Comparison(mean, sd, float(mean - half), float(mean + half), n)


def ratio(a: Score, b: Score) -> float:
    """Ratio of the means over the units of both; NaN without any or over zero."""
    units = a.keys() & b.keys()
    below = sum(b[unit] for unit in units)
    return sum(a[unit] for unit in units) / below if below else math.nan


def bootstrap_interval(
    values: np.ndarray, well_id: np.ndarray, seed: int = 0, draws: int = 2000
) -> Interval:
    """Mean over sites with a percentile interval from resampling wells with all their sites.

    The cluster bootstrap (Davison and Hinkley, "Bootstrap methods and their application", 1997,
    section 3.8): the sites of a well share its biology, so they are no independent draws. A coarser
    id (experiment) resamples that instead. Of fewer than LEAST wells there is no interval (NaN).

    Raises ValueError: sizes disagree, or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or values.shape != well_id.shape:
        raise ValueError(
            f"values {values.shape}, well_id {well_id.shape}; expected [n] each, n > 0"
        )
    check_finite("value", values, well_id)
    _, well = np.unique(well_id, return_inverse=True)
    sums = np.stack([np.bincount(well, weights=values), np.bincount(well)], axis=1)
    if len(sums) < LEAST:
        return Interval(float(values.mean()), math.nan, math.nan)
    # Wells with the same sum and number of sites are interchangeable: it is enough to draw how
    # many of each kind there are.
    kinds, count = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(kinds))
    drawn = [
        rng.multinomial(len(sums), count / len(sums), size=min(step, draws - first)) @ kinds
        for first in range(0, draws, step)
    ]
    total, sites = np.concatenate(drawn).T
    low, high = np.quantile(total / sites, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(a: pa.Table, b: pa.Table) -> Interval:
    """Accuracy by site of a minus that of b (fractions), with its interval over wells.

    a, b: tables of predictions (columns of predictions.parquet), rows in any order.

    Raises ValueError unless both hold the same sites, each once, with the same labels.
    """
    a, b = a.sort_by("site_id"), b.sort_by("site_id")
    ids = [np.array(table["site_id"].to_pylist()) for table in (a, b)]
    for names, count in (np.unique(of, return_counts=True) for of in ids):
        if (count > 1).any():
            raise ValueError(f"site {names[count.argmax()]} is twice in a table; expected once")
    odd = np.setxor1d(ids[0], ids[1])
    if len(odd):
        raise ValueError(
            f"site {odd[0]} is in one table only ({len(odd)} such sites): expected predictions of "
            "the same test sites, from runs of the same protocol and fold"
        )
    label = a["label"].to_numpy()
    same = label == b["label"].to_numpy()
    if not same.all():
        raise ValueError(f"site {ids[0][same.argmin()]} has two labels: expected the same data")
    right = [(table["prediction"].to_numpy() == label).astype(np.float64) for table in (a, b)]
    return bootstrap_interval(right[0] - right[1], np.array(a["well_id"].to_pylist()))


def _sd(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
