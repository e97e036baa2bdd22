"""Splits of the real metadata, where it is at hand: the counts of the paper, release and WILDS."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from split_screens import RANDOM, experiments, held_out, table, wells

from rxrx1_jax.data.splits import (
    FIXED,
    PAPER_EXPERIMENTS,
    WILDS_VALIDATION,
    classes_of,
    make_split,
)  # fmt: skip

METADATA = Path(__file__).parents[3] / "shared" / "realdata" / "metadata_reconstructed.csv.gz"
PAPER_TRAIN = {"HUVEC": 16, "RPE": 7, "HEPG2": 7, "U2OS": 3}
PAPER_TEST = {"HUVEC": 4, "RPE": 2, "HEPG2": 2, "U2OS": 1}


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
