"""statistics.py against SciPy, pandas and simulations."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rxrx1_jax.methods import statistics as cmp

UNITS = [cmp.Unit("w", fold, seed) for fold in range(3) for seed in range(2)]
ZERO = dict.fromkeys(UNITS, 0.0)


def test_worst_experiment_is_the_lowest_and_the_first_name_among_equals():
    accuracy = {"RPE-02": 0.5, "RPE-01": 0.2, "HUVEC-09": 0.2}
    assert cmp.worst_experiment(accuracy) == ("HUVEC-09", 0.2)
    with pytest.raises(ValueError, match="no experiments"):
        cmp.worst_experiment({})


@pytest.mark.parametrize(("worlds", "shared"), [(1, 0.0), (1, 0.5), (4, 0.5)])
def test_comparison_against_scipy(worlds, shared):
    """Worlds are compared by their means; the folds of one world have a wider interval."""
    rng = np.random.default_rng(0)
    units = [cmp.Unit(f"w{world}", *unit[1:]) for world in range(worlds) for unit in UNITS]
    a, b = (dict(zip(units, rng.random(len(units)), strict=True)) for _ in range(2))
    frame = pd.DataFrame([(*unit, a[unit] - b[unit]) for unit in units])
    values = frame.groupby([0] if worlds > 1 else [0, 1])[3].mean()
    mean, n = values.mean(), len(values)
    error = values.std() * np.sqrt(1 / n + (shared if worlds == 1 else 0))
    found = cmp.compare(a | {cmp.Unit("w0", 8, 0): 0.9}, b | {cmp.Unit("w0", 9, 9): 0}, shared)
    assert (found.mean, found.n, found.error) == pytest.approx((mean, n, error))
    expected = mean + np.array([-1, 1]) * stats.t.ppf(0.975, n - 1) * error
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, n - 1))
    if not shared:
        assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("pairs", [[0.25], [0.25, 0.1], [0.25] * 3, [0.0] * 3])
def test_few_units_and_equal_ones_have_no_interval(pairs):
    """Three seeds of two folds are two units."""
    a = {cmp.Unit("w", fold, seed): x + 0.1 for fold, x in enumerate(pairs) for seed in range(3)}
    found = cmp.compare(a, dict.fromkeys(a, 0.1), 0.5)
    assert found.mean == pytest.approx(np.mean(pairs)) and found.n == len(pairs)
    assert all(map(math.isnan, found[2:])) and math.isnan(cmp.outside(found, -1.0, 1.0))


def test_no_pair_has_nothing():
    nothing = cmp.compare({UNITS[0]: 0.5}, {UNITS[1]: 0.9}, 0.5)
    assert nothing.n == 0 and math.isnan(nothing.mean) and math.isnan(nothing.p)


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("by", ["folds", "worlds"])
def test_intervals_cover_the_truth_and_tests_of_a_margin_have_their_size(n, by):
    """2,000 boards of n units and two seeds. Folds correlate as Nadeau and Bengio assume: by the
    share of the test sites, shared / (1 + shared)."""
    boards, truth, shared = 2000, 0.04, 0.5
    rng = np.random.default_rng(n)
    common = shared / (1 + shared) if by == "folds" else 0.0
    draws = np.sqrt(1 - common) * rng.normal(size=(boards, n, 1))
    draws += np.sqrt(common) * rng.normal(size=(boards, 1, 1))
    values = truth + 0.03 * draws + 0.002 * rng.normal(size=(boards, n, 2))
    names = [("w", i) if by == "folds" else (f"w{i}", 0) for i in range(n)]
    units = [cmp.Unit(*name, seed) for name in names for seed in range(2)]
    zero = dict.fromkeys(units, 0.0)
    scores = [dict(zip(units, row, strict=True)) for row in values.reshape(boards, -1).tolist()]

    def coverage(found):
        return np.mean([one.low <= truth <= one.high for one in found])

    found = [cmp.compare(score, zero, shared) for score in scores]
    assert 0.935 < coverage(found) < 0.965
    # A difference of exactly the margin passes for none in 5 % of the cases at most.
    assert np.mean([cmp.outside(one, -truth, truth) < 0.05 for one in found]) < 0.065
    if by == "folds":  # the plain interval is too narrow
        assert coverage([cmp.compare(score, zero, 0.0) for score in scores]) < 0.9


@pytest.mark.parametrize(
    ("low", "high"), [(-0.02, 0.02), (-0.1, 0.1), (0.0, math.inf), (-math.inf, 0.03)]
)
def test_between_two_bounds_is_the_larger_of_scipy_s_one_sided_tests(low, high):
    values = np.random.default_rng(3).normal(0.01, 0.02, 6)
    found = cmp.compare(dict(zip(UNITS, values, strict=True)), ZERO, 0.0)
    folds = values.reshape(3, 2).mean(1)
    above = stats.ttest_1samp(folds, low, alternative="greater").pvalue
    below = stats.ttest_1samp(folds, high, alternative="less").pvalue
    assert cmp.outside(found, low, high) == pytest.approx(max(above, below))


def test_holm_steps_down():
    """Holm's rule word by word: reject while the smallest of the m that are left is below
    level / m."""
    p = np.append(np.random.default_rng(0).random(6) ** 4, [math.nan, 0.9])
    adjusted = np.array(cmp.holm(p))
    for level in np.linspace(0.001, 0.999, 300):
        left = {k: x for k, x in enumerate(p) if not math.isnan(x)}
        rejected = set()
        while left and min(left.values()) <= level / len(left):
            rejected.add(min(left, key=left.get))
            left.pop(min(left, key=left.get))
        assert set(np.flatnonzero(adjusted <= level)) == rejected
    assert math.isnan(adjusted[6]) and cmp.holm([]) == [] and math.isnan(cmp.holm([math.nan])[0])


def test_summary_against_pandas():
    """Over the folds of one world, over the means of several; one fold has one seed."""
    rng = np.random.default_rng(1)
    for worlds in (1, 2):
        units = [cmp.Unit(f"w{world}", *unit[1:]) for world in range(worlds) for unit in UNITS][:-1]
        score = dict(zip(units, rng.random(len(units)), strict=True))
        frame = pd.DataFrame([(*unit, value) for unit, value in score.items()],
                             columns=["world", "fold", "seed", "value"])  # fmt: skip
        folds = frame.groupby(["world", "fold"])["value"]
        of_units = folds.mean() if worlds == 1 else folds.mean().groupby("world").mean()
        centred = frame["value"] - folds.transform("mean")
        found = cmp.summarise(score)
        assert found.mean == pytest.approx(of_units.mean())
        assert found.over_units == pytest.approx(of_units.std())
        degrees = len(score) - folds.ngroups
        assert found.over_seeds == pytest.approx(np.sqrt((centred**2).sum() / degrees))
        assert cmp.by_fold(score) == pytest.approx(folds.mean().to_dict())


def test_summary_of_one_and_of_none():
    one = cmp.summarise({UNITS[0]: 0.5})
    assert one.mean == 0.5 and math.isnan(one.over_units) and math.isnan(one.over_seeds)
    assert all(map(math.isnan, cmp.summarise({})))


def test_ratio_is_of_the_units_of_both():
    a = {UNITS[0]: 0.2, UNITS[1]: 0.4, UNITS[2]: 0.9}
    assert cmp.ratio(a, {UNITS[0]: 0.1, UNITS[1]: 0.3}) == pytest.approx(1.5)
    assert math.isnan(cmp.ratio(a, {UNITS[0]: 0.0})) and math.isnan(cmp.ratio(a, {}))
