"""Submission files, read as WILDS and Kaggle read them; of the real metadata where it is there."""

import csv
import gzip
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import make_sites
from log_prob_files import make_file, normalised, sites_of_rows
from sklearn.metrics import accuracy_score
from tiny_release import tiny_rows, tiny_wilds_rows

from rxrx1_jax.data.splits import WILDS_VALIDATION
from rxrx1_jax.methods import submissions

REAL = Path(__file__).parents[3] / "shared" / "realdata"
COUNTS = {"val": 9_854, "test": 34_432, "id_test": 40_612}


def read_wilds(folder, split, seed):
    """As `get_prediction_file` and `get_predictions` of WILDS's examples/evaluate.py."""
    start = f"rxrx1_split:{split}_seed:{seed}"
    (file,) = [path for path in folder.iterdir()
               if path.name.startswith(start) and path.name.endswith(".csv")]  # fmt: skip
    lines = file.read_text().split("\n")
    return np.array([literal_eval(line.rstrip()) for line in lines if line.rstrip()])


def wilds_labels(rows, split):
    """As RxRx1Dataset of WILDS: metadata.csv by its column dataset; site 2 of train is id_test."""

    def of(row):
        return "id_test" if (row["dataset"], row["site"]) == ("train", "2") else row["dataset"]

    return np.array([int(row["sirna_id"]) for row in rows if of(row) == split])


def real_rows():
    path = REAL / "metadata_reconstructed.csv.gz"
    if not path.is_file():
        pytest.skip("the reconstructed metadata is not here")
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def as_wilds(row):
    return row | ({"dataset": "val"} if row["experiment"] in WILDS_VALIDATION else {})


def test_wilds_reads_its_files(tmp_path):
    """Sites in any order, and one without a label; a prediction is its place in metadata.csv."""
    rows = tiny_wilds_rows()
    sites = sites_of_rows(rows)
    shuffled = sites[np.random.default_rng(0).permutation(len(sites))]
    counts = submissions.write_wilds(tmp_path, 2, shuffled, shuffled["release_row"])
    assert set(counts) == set(COUNTS)
    for split, count in counts.items():
        found = read_wilds(tmp_path, split, 2)
        assert len(found) == count > 0 and (np.diff(found) > 0).all()
        assert sites["sirna_id"][found].tolist() == wilds_labels(rows, split).tolist()
    assert -1 in wilds_labels(rows, "test"), "a set without an unlabelled site"


@pytest.mark.long
def test_wilds_of_the_real_metadata(tmp_path):
    rows = real_rows()
    sites = sites_of_rows(rows)
    order = np.argsort(sites["site_id"], kind="stable")[::-1]
    assert submissions.write_wilds(tmp_path, 0, sites[order], sites["sirna_id"][order]) == COUNTS
    for split in COUNTS:
        labels = wilds_labels([as_wilds(row) for row in rows], split)
        assert accuracy_score(labels, read_wilds(tmp_path, split, 0)) == 1


def test_files_of_several_seeds(tmp_path):
    sites, classes = sites_of_rows(tiny_wilds_rows()), [0, 1, 1107, 1108, 1109, 1138]
    rng, files, runs = np.random.default_rng(0), [], []
    for seed in (4, 1):
        x = normalised(rng.normal(size=(len(sites), len(classes))))
        role = np.full(len(sites), "other")
        files.append(make_file(tmp_path / f"{seed}" / "x", sites, role, classes, x))
        config = SimpleNamespace(data=SimpleNamespace(protocol="wilds"),
                                 train=SimpleNamespace(seed=seed))  # fmt: skip
        ready = SimpleNamespace(images=SimpleNamespace(sites=sites))
        runs.append(SimpleNamespace(path=tmp_path / f"{seed}", config=config, setup=ready))
    submissions.check_wilds(runs)
    said = submissions.wilds(tmp_path / "rxrx1", runs, files)
    assert "seeds 1, 4" in said[0] and "34,432 sites of test" in said[1]
    assert len(list((tmp_path / "rxrx1").iterdir())) == 6
    rows = submissions.wilds_sets(sites)["id_test"]
    assert read_wilds(tmp_path / "rxrx1", "id_test", 4).tolist() == files[0].best()[rows].tolist()
    with pytest.raises(ValueError, match="train.seed=4"):
        submissions.check_wilds([*runs, runs[0]])
    sites["release_row"][3] = -1
    with pytest.raises(ValueError, match="release_row"):
        submissions.check_wilds(runs)


def read_kaggle(path):
    """{id_code: sirna}, as Kaggle wants it: the named columns, integers of a treatment."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["id_code", "sirna"]
    assert all(0 <= int(row["sirna"]) <= 1107 for row in rows)
    return {row["id_code"]: int(row["sirna"]) for row in rows}


def kaggle_file(path, rows, classes, seed=0):
    """Of the treatment sites and, where controls are classes, theirs; the training is known."""
    sites = sites_of_rows(rows)
    sites = sites[(sites["well_type"] == "treatment") | np.isin(sites["sirna_id"], classes)]
    labelled = sites["sirna_id"] >= 0
    role = np.where(sites["dataset"] == "train", "train", np.where(labelled, "test", "other"))
    x = np.random.default_rng(seed).normal(size=(len(sites), len(classes)))
    return make_file(path, sites, role, classes, normalised(x)), x


def test_kaggle_reads_its_file(tmp_path):
    """Both sites of a well speak, and a control is never an answer."""
    classes = np.array([0, 1, 1107, 1108, 1138])
    found, x = kaggle_file(tmp_path / "x", tiny_rows(), classes)
    said = submissions.kaggle(tmp_path / "submission.csv", found)
    wells = read_kaggle(tmp_path / "submission.csv")
    expected = {row["well_id"] for row in tiny_rows()
                if row["dataset"] == "test" and row["well_type"] == "treatment"}  # fmt: skip
    assert list(wells) == sorted(expected) and len(wells) == len(expected)
    means = normalised(x).astype(np.float64)[:, :3]
    for well, sirna in wells.items():
        assert sirna == classes[means[found.sites["well_id"] == well].mean(axis=0).argmax()]
    labels = {row["well_id"]: int(row["sirna_id"]) for row in tiny_rows()}
    right = [labels[well] == sirna for well, sirna in wells.items() if labels[well] >= 0]
    assert "19,897" in said[1] and f"{100 * np.mean(right):.1f} %" in said[2]
    assert f"{len(right)} wells" in said[2] and len(right) == len(wells) - 1


def test_kaggle_by_the_design(tmp_path):
    """No siRNA twice in an experiment. Labels of the test set are of no use."""
    rows, classes = tiny_rows(), np.array([0, 1, 1107, 1108])
    for row in rows:
        row["sirna_id"] = str((int(row["sirna_id"]) + int(row["plate"])) % 1108)
    keep = [row for row in rows if row["plate"] == "1" and row["well_type"] == "treatment"]
    found, _ = kaggle_file(tmp_path / "x", keep, classes)
    submissions.kaggle(tmp_path / "s.csv", found, "assign_once")
    wells = read_kaggle(tmp_path / "s.csv")
    assert len(wells) == 3 == len(set(wells.values()))
    hidden = found.sites.copy()
    hidden["sirna_id"][found.sites["dataset"] == "test"] = -1
    assert submissions.kaggle_wells(found._replace(sites=hidden), "assign_once") == wells


@pytest.mark.long
def test_kaggle_of_the_real_metadata(tmp_path):
    rows = real_rows()
    found, _ = kaggle_file(tmp_path / "x", rows, np.array([5, 17, 1107]))
    said = submissions.kaggle(tmp_path / "submission.csv", found)
    with gzip.open(REAL / "kaggle" / "test.csv.gz", "rt", newline="") as file:
        ids = [row["id_code"] for row in csv.DictReader(file)]
    wells = read_kaggle(tmp_path / "submission.csv")
    assert list(wells) == ids and len(ids) == 19_897 and len(said) == 2
    assert set(wells.values()) == {5, 17, 1107}


def test_what_kaggle_does_not_score(tmp_path):
    sites = sites_of_rows(tiny_rows())
    role = np.where(sites["dataset"] == "train", "train", "other")
    submissions.check_kaggle(tmp_path, sites, role)
    keep = role == "train"
    with pytest.raises(ValueError, match="dataset=test"):
        submissions.check_kaggle(tmp_path, sites[keep], role[keep])
    with pytest.raises(ValueError, match="official"):
        submissions.check_kaggle(tmp_path, sites, np.full(len(sites), "train"))


@pytest.mark.parametrize("decide", submissions.DECISIONS)
def test_a_design_that_does_not_fit_is_seen_by_the_sites_alone(tmp_path, decide):
    """siRNA k is on plate k mod 4 + 1 of the first experiment, and one further in the second."""
    wells = [(f"HUVEC-0{e}", (k + e) % 4 + 1, f"B{k + 2:02}", "treatment", k)
             for e in (1, 2, 3) for k in range(20)]  # fmt: skip
    sites = make_sites(wells)
    sites["dataset"] = np.where(sites["experiment"] == "HUVEC-03", "test", "train")
    submissions.check_kaggle(tmp_path, sites, sites["dataset"], decide)
    training = np.flatnonzero(sites["dataset"] == "train")
    if decide == "assign_once":
        sites["sirna_id"][training] //= 2
    else:
        sites["plate"][training[: len(training) // 2]] = sites["sirna_id"][training[:40]] // 5 + 1
    said = {"assign_once": "more than once", "assign_plate_groups": "groups"}[decide]
    with pytest.raises(ValueError, match=f"{tmp_path}.*{decide}.*{said}"):
        submissions.check_kaggle(tmp_path, sites, sites["dataset"], decide)
