"""Splits: the paper's counts on the real metadata, and properties on any screen."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rxrx1_jax.data.splits import (
    FIXED,
    PAPER_EXPERIMENTS,
    PROTOCOLS,
    WILDS_VALIDATION,
    SplitError,
    classes_of,
    draw_experiments,
    make_split,
    site_roles,
    write_split,
)

METADATA = Path(__file__).parents[3] / "shared" / "realdata" / "metadata_reconstructed.csv.gz"
RANDOM = ("random_site", "random_well")
PAPER_TRAIN = {"HUVEC": 16, "RPE": 7, "HEPG2": 7, "U2OS": 3}
PAPER_TEST = {"HUVEC": 4, "RPE": 2, "HEPG2": 2, "U2OS": 1}


def table(rows: list[tuple]) -> np.ndarray:
    """Sites from (experiment, dataset, plate, well, site, well_type, sirna_id)."""
    records = [
        (f"{e}_{p}_{w}_{s}", f"{e}_{p}_{w}", e.split("-")[0], d, e, p, w, s, t, i)
        for e, d, p, w, s, t, i in rows
    ]
    return np.array(records, [
        ("site_id", "U20"), ("well_id", "U20"), ("cell_type", "U8"), ("dataset", "U5"),
        ("experiment", "U12"), ("plate", "i4"), ("well", "U3"), ("site", "i4"),
        ("well_type", "U20"), ("sirna_id", "i4"),
    ])  # fmt: skip


def screen(counts: dict[str, int], sirnas: int = 6, seed: int = 0) -> np.ndarray:
    """A small screen with missing sites, missing wells, controls and unlabelled treatments."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell_type, n in counts.items():
        for k in range(1, n + 1):
            experiment, dataset = f"{cell_type}-{k:02d}", "test" if 5 * k > 4 * n else "train"
            for sirna, column in enumerate(rng.permutation(sirnas) + 3):
                fate = rng.random()
                if fate < 0.05 and sirna:
                    continue  # the whole well is missing
                label = -1 if 0.05 <= fate < 0.1 and sirna else sirna
                for site in (1, 2) if fate < 0.9 else (2,):
                    rows.append(
                        (experiment, dataset, 1, f"D{column:02d}", site, "treatment", label)
                    )
            for site in (1, 2):
                rows.append((experiment, dataset, 1, "B02", site, "negative_control", 1138))
                rows.append((experiment, dataset, 1, "C03", site, "positive_control", 1108))
    sites = table(rows)
    return sites[rng.permutation(len(sites))]  # record order is that of hashed keys


DEMO = {"HUVEC": 6, "RPE": 3, "HEPG2": 3, "U2OS": 3}


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    if not METADATA.is_file():
        pytest.skip("the reconstructed metadata is not here")
    with gzip.open(METADATA, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return table([
        (r["experiment"], r["dataset"], int(r["plate"]), r["well"], int(r["site"]),
         r["well_type"], int(r["sirna_id"])) for r in rows
    ])  # fmt: skip


@pytest.fixture(scope="module")
def official(real) -> np.ndarray:
    """The metadata as released, where every treatment is labelled: any label serves."""
    sites = real.copy()
    unknown = (sites["well_type"] == "treatment") & (sites["sirna_id"] < 0)
    wells = np.unique(sites["well_id"][unknown], return_inverse=True)[1]
    sites["sirna_id"][unknown] = wells % 1108
    return sites


def experiments(sites: np.ndarray, rows: np.ndarray) -> dict[str, int]:
    return dict(Counter(name.split("-")[0] for name in set(sites["experiment"][rows].tolist())))


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_batch_split_has_the_counts_of_the_paper(official, fold):
    split = make_split(official, "batch", fold)
    assert experiments(official, split.train) == PAPER_TRAIN  # 33
    assert experiments(official, split.test) == PAPER_TEST  # 9
    assert classes_of(official, "batch").tolist() == list(range(1108))
    names = set(official["experiment"][np.concatenate([split.train, split.test])].tolist())
    assert names == {f"{c}-{k:02d}" for c, n in PAPER_EXPERIMENTS.items() for k in range(1, n + 1)}
    treatments = (official["well_type"] == "treatment") & np.isin(
        official["experiment"], sorted(names)
    )
    assert len(split.train) + len(split.test) == treatments.sum() > 92_000


def test_official_split_of_the_release(official):
    split = make_split(official, "official")
    assert (len(split.train), len(split.test)) == (73_030, 39_794)  # as published


WILDS_TEST = {  # of the other 14
    *("HEPG2-09", "HEPG2-10", "HEPG2-11", "RPE-09", "RPE-10", "RPE-11", "U2OS-05"),
    *(f"HUVEC-{k}" for k in range(18, 25)),
}


def test_wilds_split_has_the_counts_of_wilds(official):
    split = make_split(official, "wilds")
    sets = {"train": split.train, **split.scored}
    assert {name: len(rows) for name, rows in sets.items()} == {
        "train": 40_612, "test": 34_432, "id_test": 40_612, "val": 9_854,
    }  # fmt: skip
    assert classes_of(official, "wilds").tolist() == list(range(1139))
    every = np.concatenate(list(sets.values()))
    assert len(np.unique(every)) == len(official)
    assert experiments(official, split.train) == PAPER_TRAIN  # 33
    names = {name: set(official["experiment"][rows].tolist()) for name, rows in sets.items()}
    assert names["id_test"] == names["train"] and names["test"] == WILDS_TEST
    assert names["val"] == {"HEPG2-08", "HUVEC-17", "RPE-08", "U2OS-04"}
    places = {name: set(official["site"][rows].tolist()) for name, rows in sets.items()}
    assert places == {"train": {1}, "id_test": {2}, "val": {1, 2}, "test": {1, 2}}
    types = {"treatment", "positive_control", "negative_control"}
    assert all(set(official["well_type"][rows].tolist()) == types for rows in sets.values())


@pytest.mark.parametrize("protocol", FIXED)
def test_fixed_splits_do_not_depend_on_the_partition_stored(official, protocol):
    """A dataset of config `wilds` says val of four experiments which the release has in test."""
    wilds = official.copy()
    wilds["dataset"][np.isin(wilds["experiment"], WILDS_VALIDATION)] = "val"
    one, two = make_split(official, protocol), make_split(wilds, protocol)
    assert list(one.scored) == list(two.scored)
    for a, b in zip([*one[:4], *one.extra.values()], [*two[:4], *two.extra.values()], strict=True):
        np.testing.assert_array_equal(a, b)


def test_wilds_split_leaves_out_what_has_no_label(real):
    split = make_split(real, "wilds")
    assert (real["sirna_id"] < 0).sum() == 22_088
    sets = (split.train, *split.scored.values())
    assert [len(rows) for rows in sets] == [40_612, 34_432 - 22_088, 40_612, 9_854]
    assert (real["sirna_id"][np.concatenate(sets)] >= 0).all()


@pytest.mark.parametrize("fold", [0, 1, 2])
@pytest.mark.parametrize("protocol", RANDOM)
def test_random_splits_match_the_batch_split_on_the_real_metadata(official, protocol, fold):
    batch, split = make_split(official, "batch", fold), make_split(official, protocol, fold)
    assert held_out(official, split, protocol) == held_out(official, batch, protocol)
    assert experiments(official, split.train) == experiments(official, split.test)
    twins = wells(official, split.train) & wells(official, split.test)
    assert not twins if protocol == "random_well" else len(twins) > 10_000
    if protocol == "random_site":
        assert len(split.test) == len(batch.test)


def test_an_unlabelled_experiment_is_not_drawn(real):
    """The reconstruction lacks the labels of some experiments: none may shrink a test set."""
    for fold in range(3):
        assert experiments(real, make_split(real, "batch", fold).test) == PAPER_TEST


def wells(sites, rows):
    return set(sites["well_id"][rows].tolist())


def held_out(sites, split, protocol) -> Counter:
    """Test sites, or wells, of every (cell type, siRNA)."""
    unit = "site_id" if protocol == "random_site" else "well_id"
    test = sites[split.test]
    units = {(row[unit], row["cell_type"], row["sirna_id"]) for row in test}
    return Counter(u[1:] for u in units)


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


def test_validation_is_drawn_again_for_each_fold_and_seed():
    sites = screen({"HUVEC": 20})
    drawn = [make_split(sites, "batch", fold, seed, val_experiments=2).val.tolist()
             for fold in range(3) for seed in range(3)]  # fmt: skip
    assert len({tuple(rows) for rows in drawn}) > 6


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
