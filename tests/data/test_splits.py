"""Splits: properties on any screen. Those of the real metadata: test_real_splits.py."""

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_screens import DEMO, RANDOM, experiments, held_out, screen, wells

from rxrx1_jax.data.splits import (
    FIXED,
    PAPER_EXPERIMENTS,
    PROTOCOLS,
    SplitError,
    classes_of,
    draw_experiments,
    make_split,
    site_roles,
    write_split,
)  # fmt: skip

screens = st.builds(
    screen,
    st.fixed_dictionaries({"HUVEC": st.integers(3, 22), "U2OS": st.integers(3, 5)}),
    st.integers(2, 6),
    st.integers(0, 99),
)


@settings(max_examples=40, deadline=None)
@given(screens, st.sampled_from(PROTOCOLS), st.integers(0, 2), st.integers(0, 2**40))
def test_properties_of_every_split(sites, protocol, fold, seed):
    fold = 0 if protocol in FIXED else fold
    split = make_split(sites, protocol, fold, seed)
    both = np.concatenate([split.train, *split.scored.values()])
    assert len(np.unique(both)) == len(both)  # disjoint
    assert all(len(rows) for rows in split.scored.values()) and not len(split.context)
    assert (np.diff(split.train) > 0).all() and (np.diff(split.test) > 0).all()
    classes = classes_of(sites, protocol)
    assert np.isin(sites["sirna_id"][both], classes).all()
    assert classes.dtype == np.int32 and split.train.dtype == split.test.dtype == np.int64
    if protocol == "wilds":
        assert len(both) == (sites["sirna_id"] >= 0).sum()
        assert {1108, 1138} <= set(classes.tolist())
        return
    assert list(split.scored) == ["test"]
    assert (sites["well_type"][both] == "treatment").all()
    known = (sites["well_type"] == "treatment") & (sites["sirna_id"] >= 0)
    if protocol == "official":
        assert len(both) == known.sum()
        assert set(sites["dataset"][split.test].tolist()) == {"test"}
        return
    batch = make_split(sites, "batch", fold, seed)
    assert set(both.tolist()) == {*batch.train.tolist(), *batch.test.tolist()}
    names = [set(sites["experiment"][rows].tolist()) for rows in (batch.train, batch.test)]
    assert not names[0] & names[1]
    for cell_type in ("HUVEC", "U2OS"):
        n = min(
            len(set(sites["experiment"][sites["cell_type"] == cell_type].tolist())),
            PAPER_EXPERIMENTS[cell_type],
        )
        assert experiments(sites, batch.test)[cell_type] == -(-n // 5)
        assert experiments(sites, both)[cell_type] == n
    if protocol in RANDOM:
        assert held_out(sites, split, protocol) == held_out(sites, batch, protocol)
    if protocol == "random_well":
        assert not wells(sites, split.train) & wells(sites, split.test)


@settings(max_examples=20, deadline=None)
@given(screens, st.sampled_from(PROTOCOLS), st.integers(0, 1000), st.integers(0, 10))
def test_split_does_not_depend_on_record_order(sites, protocol, seed, shuffle):
    order = np.random.default_rng(shuffle).permutation(len(sites))
    one, two = make_split(sites, protocol, 0, seed), make_split(sites[order], protocol, 0, seed)
    for a, b in zip((one.train, one.test), (two.train, two.test), strict=True):
        assert set(sites["site_id"][a].tolist()) == set(sites["site_id"][order][b].tolist())
    np.testing.assert_array_equal(classes_of(sites, protocol), classes_of(sites[order], protocol))


@settings(max_examples=20, deadline=None)
@given(screens, st.sampled_from([p for p in PROTOCOLS if p != "wilds"]), st.integers(0, 1000))
def test_single_cell_type_is_a_part_of_all(sites, protocol, seed):
    whole = make_split(sites, protocol, 0, seed)
    for cell_type in ("HUVEC", "U2OS"):
        part = make_split(sites, protocol, 0, seed, cell_type)
        for a, b in zip((whole.train, whole.test), (part.train, part.test), strict=True):
            np.testing.assert_array_equal(a[sites["cell_type"][a] == cell_type], b)


@settings(max_examples=30, deadline=None)
@given(screens, st.sampled_from([p for p in PROTOCOLS if p != "wilds"]), st.integers(0, 2),
       st.integers(0, 1000))  # fmt: skip
def test_validation_is_taken_from_training_and_leaves_the_test_set(sites, protocol, fold, seed):
    fold = 0 if protocol in FIXED else fold
    whole = make_split(sites, protocol, fold, seed)
    split = make_split(sites, protocol, fold, seed, val_experiments=1)
    assert split.test.tolist() == whole.test.tolist() and list(split.scored) == ["test", "val"]
    assert sorted([*split.train, *split.val]) == whole.train.tolist()
    huvec = make_split(sites, protocol, fold, seed, "HUVEC", 1)
    of_huvec = split.val[sites["cell_type"][split.val] == "HUVEC"]
    assert huvec.val.tolist() == of_huvec.tolist()
    batch = make_split(sites, "batch", fold, seed, val_experiments=1)
    if protocol in RANDOM:
        units = [held_out(sites, s._replace(test=s.val), protocol) for s in (split, batch)]
        assert units[0] <= units[1]  # a group may have no unit left
        assert sum(units[0].values()) > 0.6 * sum(units[1].values())
    if protocol == "random_well":
        assert not wells(sites, split.val) & wells(sites, [*split.train, *split.test])
    if protocol in ("batch", "official"):
        names = [set(sites["experiment"][rows].tolist()) for rows in split[:3]]
        assert len(set.union(*names)) == sum(map(len, names))  # whole experiments
        assert set(experiments(sites, split.val).values()) == {1}


@pytest.mark.parametrize(("sizes", "shared"), [({"HUVEC": 20, "RPE": 9, "HEPG2": 9}, True),
                                               ({"HUVEC": 6, "RPE": 3}, False)])  # fmt: skip
def test_no_fold_tests_the_experiments_of_validation_where_there_are_enough(sizes, shared):
    sites = screen(sizes)
    for seed in range(5):
        tested, held = set(), set()
        for fold in range(3):
            split = make_split(sites, "batch", fold, seed, val_experiments=2 if shared else 1)
            tested |= set(sites["experiment"][split.test].tolist())
            held |= set(sites["experiment"][split.val].tolist())
        assert len(held) == (6 if shared else 4) and bool(held & tested) != shared
    # Of three experiments the first two folds leave one.
    first = make_split(sites, "batch", 0, val_experiments=1).val
    other = set(sites["experiment"][make_split(sites, "batch", 1).test].tolist())
    assert not set(sites["experiment"][first].tolist()) & other
    drawn = {tuple(make_split(sites, "batch", 0, seed, "HUVEC", 1).val) for seed in range(20)}
    assert len(drawn) > 3


def test_single_cell_type_of_the_wilds_split():
    sites = screen({"HUVEC": 22, "RPE": 6})
    whole, part = (make_split(sites, "wilds", 0, 0, cell_type) for cell_type in ("all", "HUVEC"))
    roles, of_part = (site_roles(split, len(sites)) for split in (whole, part))
    huvec = sites["cell_type"] == "HUVEC"
    np.testing.assert_array_equal(of_part[huvec], roles[huvec])
    assert set(of_part[~huvec].tolist()) == {"other"}
    assert set(of_part.tolist()) == {"train", "id_test", "val", "test", "other"}
    assert "val" not in make_split(sites, "wilds", 0, 0, "RPE").scored  # RPE-08 is not there


def test_folds_are_disjoint_and_seeds_differ():
    sites = screen(DEMO)
    draws = [set(draw_experiments(sites, fold, 0)[1]) for fold in range(3)]
    assert [len(draw) for draw in draws] == [5, 5, 5]  # 2 + 1 + 1 + 1
    assert len(set.union(*draws)) == 15
    assert len({tuple(draw_experiments(sites, 0, seed)[1]) for seed in range(20)}) > 10
    for protocol in RANDOM:
        tests = [make_split(sites, protocol, f, s).test.tolist() for f in (0, 1) for s in (0, 1)]
        assert len({tuple(test) for test in tests}) == 4


def test_draw_is_frozen():
    """A change of the draw would make published results incomparable."""
    held_out = draw_experiments(screen(DEMO), 0, 0)[1]
    assert held_out == ["HEPG2-01", "HUVEC-03", "HUVEC-04", "RPE-01", "U2OS-01"]


def test_random_draw_ignores_the_experiment():
    """Held-out wells of a siRNA are spread over experiments, evenly within chance."""
    sites = screen({"HUVEC": 20}, sirnas=200, seed=1)
    split = make_split(sites, "random_well")
    share = Counter(sites["experiment"][split.test].tolist())
    total = Counter(sites["experiment"][np.concatenate([split.train, split.test])].tolist())
    fractions = [share[name] / total[name] for name in total]
    assert 0.1 < min(fractions) and max(fractions) < 0.3


@pytest.mark.parametrize(
    "screened, keep, arguments, named",
    [
        (DEMO, {}, ("bach",), "bach.* random_site"), (DEMO, {}, ("batch", 3), "fold 3.* 0 to 2"),
        (DEMO, {}, ("random_site", -1), "fold -1"), (DEMO, {}, ("official", 1), "fold 1.* 0 "),
        (DEMO, {}, ("wilds", 1), "fold 1"), (DEMO, {}, ("batch", 0, 0, "HeLa"), "HeLa.* U2OS"),
        ({"HUVEC": 6, "RPE": 2}, {}, ("batch", 2), "RPE has 2 .*fold 2.* 3"),
        ({"RPE": 1}, {}, ("batch",), "RPE has 1 .* 2"),
        (DEMO, {"dataset": "train"}, ("official",), "official .* 0 test"),
        (DEMO, {"well_type": "negative_control"}, ("batch",), "batch .* 0 training .*0 test"),
        (DEMO, {"site": 2}, ("wilds",), "wilds .* 0 training"),
        (DEMO, {}, ("wilds", 0, 0, "all", 1), "val_experiments=1.* wilds"),
        (DEMO, {}, ("batch", 0, 0, "all", 2), "val_experiments=2.*HEPG2.* 0 to 1"),
        (DEMO, {}, ("batch", 0, 0, "all", -1), "val_experiments=-1"),
    ],
)
def test_errors_name_the_valid_choices(screened, keep, arguments, named):
    sites = screen(screened)
    for field, value in keep.items():
        sites = sites[sites[field] == value]
    with pytest.raises(SplitError, match=named):
        make_split(sites, *arguments)


def test_a_fold_needs_experiments_of_its_own_cell_types_alone():
    two = screen({"HUVEC": 6, "RPE": 2})
    assert len(make_split(two, "batch", 1).test)
    assert len(make_split(two, "batch", 2, 0, "HUVEC").test)


@pytest.mark.parametrize(("protocol", "fold"), [("random_well", 1), ("wilds", 0)])
def test_written_file_is_the_split(tmp_path, protocol, fold):
    sites = screen({**DEMO, "U2OS": 5})
    split = make_split(sites, protocol, fold)
    write_split(tmp_path / "split.csv", sites, split)
    with open(tmp_path / "split.csv", newline="") as file:
        rows = [(row["site_id"], row["role"]) for row in csv.DictReader(file)]
    sets = {"train": split.train, **split.scored}
    for role, expected in sets.items():
        assert [s for s, r in rows if r == role] == sites["site_id"][expected].tolist()
    assert len(rows) == sum(map(len, sets.values()))
    assert set(sets) == {"train", "test"} | ({"id_test", "val"} if protocol == "wilds" else set())
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]
