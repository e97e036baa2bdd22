"""What is taught beyond the split: the surest wells by counting by hand; controls as classes."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from screens import tiny_config, tiny_images

from rxrx1_jax.data import splits
from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.data.taught import COLUMNS, surest, taught
from rxrx1_jax.training import predictions


def predicted(path, sites, classes, seed=0, **columns):
    """A file of predictions of these sites, as a run writes it, with made-up log-probabilities."""
    log_probs = np.random.default_rng(seed).normal(0, 3, (len(sites), len(classes)))
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    table = predictions.predictions_table(
        sites, np.array(classes), log_probs.astype(np.float32), np.zeros(len(sites))
    )
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values))
    predictions.write_predictions(path, table)
    return log_probs


def given():
    """Sites, settings and the split of the tiny release."""
    sites, data = tiny_images().sites, tiny_config().data
    return sites, data, splits.configured(sites, data)



@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_surest_wells(tmp_path, share, seed):
    sites = tiny_images().sites
    sites = np.random.default_rng(seed).permutation(sites)
    classes = list(range(3, 12))  # more than the five that a file keeps
    log_probs = predicted(tmp_path / "p.parquet", sites, classes, seed)
    wells = defaultdict(list)
    for row, name in enumerate(sites["well_id"].tolist()):
        wells[name].append(row)
    found = {}
    for name, rows in wells.items():
        best = int(log_probs[rows].sum(0).argmax())
        sure = [np.exp(log_probs[row][best]) * (best in np.argsort(-log_probs[row])[:5])
                for row in rows]  # fmt: skip
        found[name] = (float(np.mean(sure)), classes[best])
    order = sorted(found, key=lambda name: (-found[name][0], name))
    kept = order[: int(np.ceil(share * len(order)))]
    expected = {sites["site_id"][row]: found[name][1] for name in kept for row in wells[name]}
    assert surest(str(tmp_path / "p.parquet"), share, sites["site_id"].tolist()) == expected
    assert 0 < len(expected) <= len(sites) and (share < 1 or len(expected) == len(sites))


def test_of_equally_sure_wells_the_first_by_name_are_taken(tmp_path):
    sites = tiny_images().sites[::-1]
    top = [[1, 2]] * len(sites)
    predicted(tmp_path / "p.parquet", sites, [1, 2], well_prediction=[1] * len(sites),
              top5=top, top5_probability=[[0.75, 0.25]] * len(sites))  # fmt: skip
    found = surest(str(tmp_path / "p.parquet"), 0.2, sites["site_id"].tolist())
    wells = sorted(set(sites["well_id"].tolist()))
    assert {name.rpartition("_")[0] for name in found} == set(wells[: -(-len(wells) // 5)])


def test_pseudo_labels_take_the_place_of_labels_in_training_alone(tmp_path):
    sites, data, split = given()
    before = sites.copy()
    predicted(tmp_path / "p.parquet", sites[split.test], [0, 1, 1107])
    data.pseudo_labels, data.pseudo_share = str(tmp_path / "p.parquet"), 0.4
    found = taught(data, sites, split)
    chosen = surest(data.pseudo_labels, 0.4, sites["site_id"][split.test].tolist())
    new = np.setdiff1d(found.split.train, split.train)
    assert set(sites["site_id"][new].tolist()) == set(chosen) and set(new) < set(split.test)
    for row in split.test:  # the true labels are gone
        assert found.sites["sirna_id"][row] == chosen.get(sites["site_id"][row], -1)
        assert not found.sites["sirna"][row]
    rest = np.setdiff1d(np.arange(len(sites)), split.test)
    np.testing.assert_array_equal(found.sites[rest], before[rest])
    np.testing.assert_array_equal(sites, before)
    assert found.split._replace(train=split.train) == split
    prints = [found.fingerprint(split)["taught"]]
    assert f"{len(new)} pseudo-labelled test" in found.about(split)
    predicted(tmp_path / "p.parquet", sites[split.test], [0, 1, 1107], seed=1)
    prints.append(taught(data, sites, split).fingerprint(split)["taught"])
    data.pseudo_share = 0.8
    prints.append(taught(data, sites, split).fingerprint(split)["taught"])
    assert len(set(prints)) == 3


@pytest.mark.parametrize("whose", ["none", "train", "all"])
def test_controls_as_classes(whose):
    sites, data, split = given()
    data.control_classes = whose
    found = taught(data, sites, split)
    control = np.char.endswith(sites["well_type"], "control")
    experiments = {"none": [], "train": ["HUVEC-01", "U2OS-01"]}.get(whose)
    rows = control if experiments is None else control & np.isin(sites["experiment"], experiments)
    more = np.setdiff1d(found.split.train, split.train)
    np.testing.assert_array_equal(more, np.flatnonzero(rows))
    assert found.classes.tolist() == [0, 1, *((1107, 1108, 1109, 1138) if rows.any() else (1107,))]
    assert bool(found.fingerprint(split)) == bool(found.about(split)) == bool(rows.any())
    assert found.split._replace(train=split.train) == split and found.sites is sites


def test_controls_alone_are_learnt_before_treatments():
    sites, data, split = given()
    data.control_classes = "train"
    both = taught(data, sites, split)
    data.control_classes = "alone"
    found = taught(data, sites, split)
    controls = np.setdiff1d(both.split.train, split.train)
    np.testing.assert_array_equal(found.split.train, controls)
    assert len(controls) and found.classes.tolist() == both.classes.tolist()
    assert found.about(split).endswith("alone") and both.about(split).endswith("too")


def test_of_wilds_no_site_with_another_role_is_taught():
    sites, data, _ = given()
    split = splits.make_split(sites, "wilds")
    data.protocol, data.control_classes = "wilds", "all"
    np.testing.assert_array_equal(taught(data, sites, split).split.train, split.train)
    data.control_classes = "alone"
    with pytest.raises(DatasetError, match="control_classes=alone.*wilds"):
        taught(data, sites, split)


def another_screen(path, sites, test):
    predicted(path, sites[test[:-1]], [0, 1, 1107])
    return [sites["site_id"][test[-1]], str(len(test))]


def another_class(path, sites, test):
    predicted(path, sites[test], [0, 1108, 1109])
    return ["1108", "control_classes"]


def a_folder(path, sites, test):
    path.mkdir()
    return ["folder", "predictions.parquet"]


def no_table(path, sites, test):
    path.write_text("site_id,label\n")
    return ["predictions.parquet"]


def another_table(path, sites, test):
    pq.write_table(pa.table({"site_id": sites["site_id"][test].tolist()}), path)
    return ["predictions.parquet"]


def no_shares(path, sites, test):
    count = len(test)
    values = [["a"] * count, ["b"] * count, [1] * count, [[1]] * count, [None] * count]
    pq.write_table(pa.table(dict(zip(COLUMNS, values, strict=True))), path)
    return ["predictions.parquet"]


@pytest.mark.parametrize(
    "write",
    [another_screen, another_class, a_folder, no_table, another_table, no_shares, None],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, write):
    sites, data, split = given()
    data.pseudo_labels, data.pseudo_share = str(tmp_path / "p.parquet"), 1.0
    words = write(tmp_path / "p.parquet", sites, split.test) if write else ["no such"]
    with pytest.raises(DatasetError) as error:
        taught(data, sites, split)
    said = str(error.value)
    assert "\n" not in said and all(w in said for w in ["data.pseudo_labels", *words]), said


@pytest.mark.parametrize("share", [0.0, 1.01, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(DatasetError, match=f"data.pseudo_share={share}"):
        surest("p.parquet", share, [])
