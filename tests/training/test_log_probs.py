"""log_probs.parquet read with pandas and NumPy alone; means over orientations by hand."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from commands import run_command
from screens import tiny_config, tiny_images

from rxrx1_jax.data.images import InMemory
from rxrx1_jax.training import log_probs, setup
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.run_dir import RunError


@pytest.fixture(scope="module")
def predicted(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    done = run_command("main", f"--workdir={finished.workdir}", f"--out={folder}",
                       "--mode=predict", "--log_probs")  # fmt: skip
    assert done.code == 0 and "log_probs.parquet" in done.out, done.err
    return folder


def test_every_log_probability_is_there(predicted, tiny):
    path = predicted / "log_probs.parquet"
    table = pd.read_parquet(path)
    x = np.stack(table["log_probs"])
    classes = np.array(json.loads(pq.read_schema(path).metadata[b"classes"]))
    assert x.dtype == np.float32 and x.shape == (len(table), len(classes))
    np.testing.assert_allclose(np.exp(x.astype(np.float64)).sum(1), 1, rtol=1e-5)
    told = pd.read_parquet(predicted / "predictions_all.parquet")
    assert table["site_id"].tolist() == told["site_id"].tolist()
    assert classes[x.argmax(1)].tolist() == told["prediction"].tolist()
    assert table["role"].tolist() == told["role"].tolist()
    for row in table.to_dict("records"):
        known = tiny.rows[row["site_id"]]
        assert all(str(row[name]) == value for name, value in known.items())
        assert row["release_row"] == list(tiny.rows).index(row["site_id"])
    treated = [site for site, row in tiny.rows.items() if row["well_type"] == "treatment"]
    assert sorted(table["site_id"]) == sorted(treated) and -1 in set(table["sirna_id"])


def test_what_is_written_is_read_in_parts(predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(log_probs, "ROWS", 7)
    found = log_probs.read(predicted / "log_probs.parquet")
    whole = np.concatenate(list(found.parts()))
    parts = np.split(whole, [3, 20])
    path = tmp_path / "again.parquet"
    log_probs.write(path, found.sites, found.role, found.classes, parts, {"step": "3"})
    again = log_probs.read(path)
    assert {len(part) for part in again.parts()} <= set(range(1, 8))
    np.testing.assert_array_equal(np.concatenate(list(again.parts())), whole)
    keep = np.arange(len(whole)) % 3 == 1
    np.testing.assert_array_equal(again.of(keep), whole[keep])
    np.testing.assert_array_equal(again.best(), found.classes[whole.argmax(1)])
    assert again.source == {"step": "3"} == log_probs.source_of(path)
    for name in log_probs.COLUMNS:
        assert again.sites[name].tolist() == found.sites[name].tolist()


@pytest.mark.parametrize("damage", ["cut", "text", "nan", "other"])
def test_a_file_that_is_not_what_was_written(predicted, tmp_path, damage):
    found, path = log_probs.read(predicted / "log_probs.parquet"), tmp_path / "log_probs.parquet"
    whole = np.concatenate(list(found.parts()))
    if damage == "cut":
        path.write_bytes((predicted / "log_probs.parquet").read_bytes()[:-50])
    elif damage == "text":
        path.write_text("a,b\n")
    elif damage == "nan":
        whole[4, 1] = np.nan
        log_probs.write(path, *found[1:4], [whole], found.source)
    else:
        pq.write_table(pq.read_table(predicted / "predictions_all.parquet"), path)
    assert (log_probs.source_of(path) == {}) == (damage != "nan")
    with pytest.raises(ValueError, match="log_probs.parquet") as told:
        list(log_probs.read(path).parts())
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="3 rows"):
        log_probs.write(tmp_path / "short", *found[1:4], [whole[:3]], {})
    assert not (tmp_path / "short").exists()


def test_a_run_finds_what_belongs_to_it(finished, predicted, monkeypatch):
    run = Run.open(finished.workdir)
    monkeypatch.setattr(Run, "predict_all", lambda *_, **__: pytest.fail("predicted again"))
    assert run.log_probs(predicted).path == predicted / "log_probs.parquet"
    other = Run.open(finished.workdir, {"eval.orientations": True})
    with pytest.raises(pytest.fail.Exception):
        other.log_probs(predicted)


def test_log_probs_go_with_predict(finished):
    done = run_command("main", f"--workdir={finished.workdir}", "--log_probs", "--mode=evaluate")
    assert done.code == 2 and "--mode=predict" in done.last


def test_means_over_the_eight_orientations(finished, tmp_path):
    """Oracle: turned images, predicted as images of their own."""
    run = Run.open(finished.workdir)
    sites, rows = run.images.sites, np.flatnonzero(run.images.sites["well_type"] == "treatment")
    planes = np.stack([run.images[row] for row in rows])
    flips = [planes, planes[:, :, ::-1], planes[..., ::-1], planes[:, :, ::-1, ::-1]]
    turned = np.concatenate([x for flip in flips for x in (flip, flip.swapaxes(2, 3))])
    mean, std = (np.tile(sites[f"control_{name}"][rows], (8, 1)) for name in ("mean", "std"))
    experiment = np.tile(sites["experiment"][rows], 8)
    said = run.predict(InMemory(turned, {"experiment": experiment}, mean, std)).log_probs
    said = said.reshape(8, len(rows), -1).astype(np.float64)
    assert np.ptp(said, axis=0).max() > 0.1, "orientations differ"
    expected = said.mean(axis=0)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    done = run_command("main", f"--workdir={finished.workdir}", f"--out={tmp_path}", "--log_probs",
                       "--mode=predict", "--config.eval.orientations=True")  # fmt: skip
    assert done.code == 0, done.err
    table = pd.read_parquet(tmp_path / "log_probs.parquet")
    assert table["site_id"].tolist() == sites["site_id"][rows].tolist()
    np.testing.assert_allclose(np.stack(table["log_probs"]), expected, atol=1e-4)


def test_an_evaluation_says_that_it_is_over_orientations(own_run, tmp_path):
    results = tmp_path / "out" / "results.json"
    for options, expected in ((["--config.eval.orientations=True"], True), ([], None)):
        done = run_command("main", f"--workdir={own_run.workdir}", "--mode=evaluate",
                           f"--out={results.parent}", *options)  # fmt: skip
        assert done.code == 0, done.err
        found = json.loads(results.read_text())
        assert found.get("orientations") is expected
    assert found["loss"] == pytest.approx(own_run.results["loss"], rel=1e-5)


def test_orientations_need_a_square():
    images = tiny_images()
    images = replace_planes(images, images.planes[..., :-2])
    config = tiny_config(data__augment=False, eval__orientations=True)
    with pytest.raises(RunError, match="eval.orientations"):
        setup.prepare(config, images)


def replace_planes(images: InMemory, planes: np.ndarray) -> InMemory:
    names = ("site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site",
             "well_type", "sirna_id")  # fmt: skip
    return InMemory(np.ascontiguousarray(planes), {name: images.sites[name] for name in names})
