"""statistics.py against scipy, pandas, closed forms, and resampling by loops."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from rxrx1_jax.methods import statistics as cmp


def sites(seed=0, wells=60):
    """Hits of sites that share their well's fate for the most part; every fifth well has one."""
    rng = np.random.default_rng(seed)
    well = np.repeat(np.arange(wells), np.where(np.arange(wells) % 5, 2, 1))
    easy = rng.random(wells) < 0.5
    right = np.where(rng.random(len(well)) < 0.1, ~easy[well], easy[well])
    names = np.array([f"W{k:03d}" for k in well])
    order = rng.permutation(len(well))
    return right[order], names[order]


def test_worst_experiment_is_the_lowest_and_the_first_name_among_equals():
    accuracy = {"RPE-02": 0.5, "RPE-01": 0.2, "HUVEC-09": 0.2}
    assert cmp.worst_experiment(accuracy) == ("HUVEC-09", 0.2)
    with pytest.raises(ValueError, match="no experiments"):
        cmp.worst_experiment({})


UNITS = [cmp.Unit("w", fold, seed) for fold in range(3) for seed in range(2)]


def test_comparison_is_scipy_s_over_the_units_of_both():
    rng = np.random.default_rng(0)
    a = dict(zip(UNITS, rng.random(6), strict=True))
    b = {unit: a[unit] - 0.1 + 0.05 * rng.random() for unit in reversed(UNITS)}
    oracle = stats.ttest_rel([a[k] for k in UNITS], [b[k] for k in UNITS])
    interval = oracle.confidence_interval(0.95)
    found = cmp.compare(a | {cmp.Unit("other", 0, 0): 0.9}, b | {cmp.Unit("w", 0, 7): 0.1})
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean([a[k] - b[k] for k in UNITS]))
    assert found.n == 6 and found.sd == pytest.approx(np.std([a[k] - b[k] for k in UNITS], ddof=1))


@pytest.mark.parametrize("pairs", [[0.25], [0.25, 0.25], [0.25, 0.1], [0.25] * 3])
def test_few_pairs_and_equal_ones_have_no_interval(pairs):
    a = dict(zip(UNITS, np.add(pairs, 0.1), strict=False))
    found = cmp.compare(a, dict.fromkeys(UNITS, 0.1))
    assert found.mean == pytest.approx(np.mean(pairs)) and found.n == len(pairs)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(found.sd) == (len(pairs) == 1)


def test_no_pair_has_nothing_and_one_method_is_itself():
    nothing = cmp.compare({UNITS[0]: 0.5}, {UNITS[1]: 0.9})
    assert nothing.n == 0 and all(math.isnan(x) for x in nothing[:4])
    same = dict.fromkeys(UNITS, 0.5)
    assert cmp.compare(same, same) == (0, 0, 0, 0, 6)


def test_summary_against_pandas():
    rng = np.random.default_rng(1)
    units = [*UNITS[:-1], *(cmp.Unit("v", 0, seed) for seed in range(3))]  # one fold has one seed
    score = dict(zip(units, rng.random(len(units)), strict=True))
    frame = pd.DataFrame([(*unit, value) for unit, value in score.items()],
                         columns=["world", "fold", "seed", "value"])  # fmt: skip
    folds = frame.groupby(["world", "fold"])["value"]
    centred = frame["value"] - folds.transform("mean")
    found = cmp.summarise(score)
    assert found.mean == pytest.approx(folds.mean().mean())
    assert found.over_folds == pytest.approx(folds.mean().std())
    assert found.over_seeds == pytest.approx(np.sqrt((centred**2).sum() / (len(score) - 4)))
    assert found.n == len(score) == 8
    assert cmp.by_fold(score) == pytest.approx(folds.mean().to_dict())


def test_summary_of_one_and_of_none():
    one = cmp.summarise({UNITS[0]: 0.5})
    assert one.mean == 0.5 and math.isnan(one.over_folds) and math.isnan(one.over_seeds)
    none = cmp.summarise({})
    assert none.n == 0 and all(math.isnan(x) for x in none[:3])


def test_ratio_is_of_the_units_of_both():
    a = {UNITS[0]: 0.2, UNITS[1]: 0.4, UNITS[2]: 0.9}
    assert cmp.ratio(a, {UNITS[0]: 0.1, UNITS[1]: 0.3}) == pytest.approx(1.5)
    assert math.isnan(cmp.ratio(a, {UNITS[0]: 0.0})) and math.isnan(cmp.ratio(a, {}))


def test_interval_is_that_of_resampling_wells_in_a_loop():
    right, wells = sites()
    rng = np.random.default_rng(9)
    names = np.unique(wells)
    members = [right[wells == name] for name in names]
    means = []
    for _ in range(4000):
        drawn = [members[k] for k in rng.integers(len(names), size=len(names))]
        means.append(np.concatenate(drawn).mean())
    found = cmp.bootstrap_interval(right, wells, draws=4000)
    assert found.estimate == right.mean()
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)


@pytest.mark.parametrize("scale", [1, 2])
def test_interval_of_independent_wells_is_the_binomial_s_and_twins_add_nothing(scale):
    # n wells with a share p right: the resampled count is exactly binomial(n, p).
    n, hits = 200, 60
    wells = np.repeat([f"W{k}" for k in range(n)], scale)
    right = np.repeat(np.arange(n) < hits, scale)
    found = cmp.bootstrap_interval(right, wells, draws=20000)
    low, high = stats.binom.ppf([0.025, 0.975], n, hits / n) / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=1.01 / n)


def test_interval_has_no_width_where_all_is_right_and_is_none_for_two_wells():
    right, wells = sites()
    assert cmp.bootstrap_interval(np.ones(len(wells)), wells) == (1, 1, 1)
    few = cmp.bootstrap_interval(np.array([1, 0, 1]), np.array(["a", "a", "b"]))
    assert few.estimate == pytest.approx(2 / 3) and math.isnan(few.low) and math.isnan(few.high)


def test_interval_follows_the_seed_and_not_the_order_of_rows_or_the_size_of_blocks(monkeypatch):
    right, wells = sites()
    order = np.random.default_rng(1).permutation(len(wells))
    found = cmp.bootstrap_interval(right, wells, seed=4)
    assert cmp.bootstrap_interval(right[order], wells[order], seed=4) == found
    other = cmp.bootstrap_interval(np.random.default_rng(2).random(len(wells)), wells, seed=4)
    again = cmp.bootstrap_interval(np.random.default_rng(2).random(len(wells)), wells, seed=5)
    assert other != again and other == pytest.approx(again, abs=0.03)
    monkeypatch.setattr(cmp, "BLOCK", 10)
    assert cmp.bootstrap_interval(right, wells, seed=4) == found


def test_bootstrap_refuses_missing_values_and_sizes_that_disagree():
    right, wells = sites()
    with pytest.raises(ValueError, match=rf"{wells[3]}.* finite"):
        cmp.bootstrap_interval(np.where(np.arange(len(wells)) == 3, np.nan, right), wells)
    with pytest.raises(ValueError, match=f"values .{len(wells) - 1}"):
        cmp.bootstrap_interval(right[:-1], wells)


def table(right, wells, seed):
    """Predictions of label 7, those of the sites where `right`; rows in an order of the seed."""
    order = np.random.default_rng(seed).permutation(len(wells))
    columns = {
        "site_id": [f"{well}_{i}" for i, well in enumerate(wells)],
        "well_id": wells.tolist(),
        "label": [7] * len(wells),
        "prediction": np.where(right, 7, 8).tolist(),
    }
    return pa.table(columns).take(order)


def test_paired_difference_is_the_bootstrap_of_differences_site_by_site():
    a, wells = sites(0)
    b = np.where(np.random.default_rng(3).random(len(a)) < 0.15, ~a, a)
    one, two = table(a, wells, 1), table(b, wells, 2)
    found = cmp.paired_difference(one, two)
    assert found == cmp.bootstrap_interval(a.astype(float) - b, wells)
    assert cmp.paired_difference(two, one).estimate == -found.estimate != 0
    assert cmp.paired_difference(one, table(a, wells, 2)) == (0, 0, 0)
    # Methods that err on the same sites are told apart better than by two separate intervals.
    separate = [cmp.bootstrap_interval(x, wells) for x in (a, b)]
    width = sum((x.high - x.low) ** 2 for x in separate) ** 0.5
    assert found.high - found.low < 0.8 * width


def test_paired_difference_refuses_other_sites_labels_and_repeats():
    whole = table(*sites(), 0)
    missing = whole["site_id"][4].as_py()
    part = pa.concat_tables([whole.slice(0, 4), whole.slice(5)])
    with pytest.raises(ValueError, match=f"{missing} .*one table"):
        cmp.paired_difference(whole, part)
    with pytest.raises(ValueError, match=f"{missing} .*twice"):
        cmp.paired_difference(whole, pa.concat_tables([whole, whole.slice(4, 1)]))
    labels = [8 if name == missing else 7 for name in whole["site_id"].to_pylist()]
    with pytest.raises(ValueError, match=f"{missing} .*labels"):
        cmp.paired_difference(whole, whole.set_column(2, "label", pa.array(labels)))
