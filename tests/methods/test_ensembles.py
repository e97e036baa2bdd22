"""Means over runs against NumPy, and the table of runs against SciPy's intervals."""

import numpy as np
import pytest
from arrays import make_sites
from log_prob_files import make_file, normalised
from numpy.lib import recfunctions
from scipy import stats

from rxrx1_jax.methods import ensembles
from rxrx1_jax.report import ensemble
from rxrx1_jax.training import log_probs

CLASSES = np.array([3, 7, 8, 20])
EXPERIMENTS = ("HUVEC-01", "HUVEC-02", "RPE-01", "U2OS-01", "HEPG2-04")


def made_up(folder, seed, **changes):
    """Two sites of twelve wells an experiment; the first experiment is for training."""
    wells = [(name, 1, f"B{well:02}", "treatment", CLASSES[well % 4])
             for name in EXPERIMENTS for well in range(12)]  # fmt: skip
    sites = recfunctions.append_fields(make_sites(wells), "release_row", np.arange(120), "i4", -1,
                                       usemask=False)  # fmt: skip
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(120, 4)) + 1.2 * (sites["sirna_id"][:, None] == CLASSES)
    role = np.where(sites["experiment"] == EXPERIMENTS[0], "train", "test")
    for name in changes.keys() & set(sites.dtype.names):
        sites[name][:2] = changes[name]
    role[-1] = changes.get("role", role[-1])
    classes = changes.get("classes", CLASSES)
    return make_file(folder / f"{seed}" / "log_probs.parquet", sites, role, classes,
                     normalised(logits))  # fmt: skip


def whole(file):
    return np.concatenate(list(file.parts())).astype(np.float64)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(log_probs, "ROWS", 50)
    return [made_up(tmp_path, seed) for seed in range(3)]


def test_probabilities_are_averaged(files, tmp_path):
    expected = np.log(np.mean([np.exp(whole(file)) for file in files], axis=0))
    found = ensembles.write_mean(files, tmp_path)
    np.testing.assert_allclose(whole(found), expected, atol=1e-6)
    assert found.path == tmp_path / "log_probs.parquet" and found.source.keys() == {"mean of"}
    assert found.sites["site_id"].tolist() == files[0].sites["site_id"].tolist()
    table = ensembles.test_table(found)
    test = found.role == "test"
    assert table["site_id"].to_pylist() == found.sites["site_id"][test].tolist()
    assert table["prediction"].to_pylist() == CLASSES[expected[test].argmax(1)].tolist()
    by_well = CLASSES[(expected[::2] + expected[1::2]).argmax(1)].repeat(2)
    assert table["well_prediction"].to_pylist() == by_well[test].tolist()


@pytest.mark.parametrize(
    "what, changes",
    [("site_id", {"site_id": ["x", "y"]}), ("sirna_id", {"sirna_id": -1}),
     ("role", {"role": "val"}), ("classes", {"classes": CLASSES + 1})],
)  # fmt: skip
def test_files_that_do_not_go_together(files, tmp_path, what, changes):
    ensembles.check_files(files)
    with pytest.raises(ValueError, match=f"differ in {what}") as told:
        ensembles.check_files([*files, made_up(tmp_path, 3, **changes)])
    assert all(str(path) in str(told.value) for path in (files[0].path, tmp_path / "3"))


def test_a_file_without_a_test_site(tmp_path):
    file = made_up(tmp_path, 0)._replace(role=np.full(120, "other"))
    with pytest.raises(ValueError, match="role test"):
        ensembles.test_table(file)


def test_the_table_of_runs(files, tmp_path):
    found = [*files, ensembles.write_mean(files, tmp_path)]
    names = ["a", "b", "c", "mean"]
    tables = {n: ensembles.test_table(file) for n, file in zip(names, found, strict=True)}
    table = ensemble.compared(tables, {"a": tmp_path})
    test = found[0].role == "test"
    label, experiment = (found[0].sites[x][test] for x in ("sirna_id", "experiment"))
    right = [CLASSES[whole(file)[test].argmax(1)] == label for file in found]
    accuracy = np.array([[of[experiment == name].mean() for name in np.unique(experiment)]
                         for of in right])  # fmt: skip
    for row, of, by_experiment, file in zip(table.rows, right, accuracy, found, strict=True):
        assert row[1].value == pytest.approx(100 * of.mean())
        x = whole(file)[test]
        wells = int((CLASSES[(x[::2] + x[1::2]).argmax(1)] == label[::2]).sum())
        interval = stats.binomtest(wells, 48).proportion_ci(0.95, "wilson")
        expected = (wells / 48, *interval)
        assert [row[2].value, row[2].low, row[2].high] == pytest.approx([100 * p for p in expected])
        if row[0] == "mean":
            assert row[4] == ""
            continue
        gains = 100 * (accuracy[3] - by_experiment)
        low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        assert [row[4].value, row[4].low, row[4].high] == pytest.approx([gains.mean(), low, high])
    assert [str(row[0]) for row in table.rows] == names
    (alone,) = ensemble.compared({"a": tables["a"]}, {"a": tmp_path}).rows
    assert alone[4] == "" and alone[1] == table.rows[0][1]
