"""A trained run in other hands: it is read, and predicts images of its own data and of others."""

import csv
import itertools
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from finished_runs import change_settings
from screens import tiny_config, tiny_images

from rxrx1_jax.data import embeddings
from rxrx1_jax.data.images import METADATA, InMemory
from rxrx1_jax.methods import corrections
from rxrx1_jax.training import checkpoint, run_dir, train
from rxrx1_jax.training.run import Run, _vocabulary_of_old


@pytest.fixture(scope="module")
def images():
    return tiny_images()


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    train.train_and_evaluate(tiny_config(train__eval_every=0), path, images)
    return path


def copied(workdir, tmp_path, **changes):
    """A copy of the run with other settings."""
    change_settings(path := shutil.copytree(workdir, tmp_path / "run"), **changes)
    return path


def others(images, planes, **changes):
    """The metadata of the images with other pixels."""
    columns = {name: images.sites[name] for name in METADATA} | changes
    return InMemory(planes, columns)


def test_reading_changes_nothing(workdir, images):
    before = sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    run = Run.open(workdir)
    for which in checkpoint.WHICH:
        state = run.load(which)
        assert state.opt_state == () and state.loss_state == ()
    run.predict(images, np.arange(3))
    assert before == sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    assert run.vocabulary.experiments == ("HUVEC-01", "HUVEC-02", "U2OS-01")
    assert run.made_with["settings"] and set(run.fingerprint) >= {"data", "split"}


def test_a_checkpoint_is_opened_for_its_shapes_and_for_its_arrays(workdir, monkeypatch):
    opened, read = [], checkpoint._read
    monkeypatch.setattr(checkpoint, "_read", lambda *given: opened.append(given) or read(*given))
    Run.open(workdir).load()
    assert len(opened) == 2


def test_its_own_data_have_roles_and_the_predictions_of_its_evaluation(workdir, images):
    table = pq.read_table(workdir / "predictions.parquet").to_pydict()
    found = Run.open(workdir).predict(images)
    test = found.role == "test"
    assert found.sites["site_id"][test].tolist() == table["site_id"]
    assert found.classes[found.log_probs[test].argmax(1)].tolist() == table["prediction"]
    rows = np.array([40, 3, 11])
    some = Run.open(workdir).predict(images, rows)
    np.testing.assert_allclose(some.x, found.x[rows], rtol=1e-4, atol=1e-5)
    assert some.role.tolist() == found.role[rows].tolist() and some.source == found.source


def test_images_of_others_have_no_roles(workdir, images):
    """Other plates, names that the run does not know, another size."""
    run = Run.open(workdir)
    names = np.full(len(images), "HEPG2-09")
    larger = np.pad(images.planes, [(0, 0), (0, 0), (0, 8), (0, 8)], mode="reflect")
    found = run.predict(others(images, larger, experiment=names))
    assert found.role is None and found.log_probs.shape == (61, 3) and found.x.shape == (61, 16)
    same = run.predict(others(images, images.planes, dataset=np.full(len(images), "x")))
    np.testing.assert_allclose(same.x, run.predict(images).x, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_trained_meanwhile_is_read_as_it_was(workdir, images, tmp_path):
    path = copied(workdir, tmp_path)
    run = Run.open(path, images=images)
    assert run.newest
    shutil.copytree(path / "checkpoints" / "8", path / "checkpoints" / "9")
    shutil.rmtree(path / "checkpoints" / "8" / "about")
    assert run.checkpoint().name == "9" and Run.open(path).source["step"] == "9"
    assert run.source["step"] == run.newest.path.name == "8"
    assert int(run.state.step) == 8


def test_images_that_are_no_square_and_rows_in_any_order(workdir, images):
    run = Run.open(workdir)
    oblong = others(images, images.planes[:, :, :, :12])
    rows = np.array([7, 3, 60])
    found, every = run.predict(oblong, rows), run.predict(oblong)
    np.testing.assert_allclose(found.x, every.x[rows], rtol=1e-4, atol=1e-5)
    assert found.sites["site_id"].tolist() == images.sites["site_id"][rows].tolist()
    for wrong in (np.ones(61, bool), [[1]], [0.5], [], [7, 7], [-1], [61]):
        with pytest.raises(run_dir.RunError, match="rows"):
            run.predict(images, wrong)


def test_other_channels_are_refused(workdir, images):
    with pytest.raises(checkpoint.CheckpointError, match="params/conv1.*channels"):
        Run.open(workdir).predict(others(images, images.planes[:, :3]))


def test_statistics_of_the_training_data_are_not_made_up(workdir, images, tmp_path):
    run = Run.open(copied(workdir, tmp_path, data__normalisation="global_control"))
    assert len(run.predict(images).x) == 61
    with pytest.raises(run_dir.RunError, match="global_control"):
        run.predict(others(images, images.planes[::-1]))


@pytest.mark.devices
def test_any_number_of_devices_predicts(workdir, images, tmp_path):
    """Of eight; a batch of 3 sites is for none of them."""
    run = Run.open(copied(workdir, tmp_path, eval__batch_size=3))
    found, expected = run.predict(images), Run.open(workdir).predict(images)
    assert run.load().params["fc"]["kernel"].sharding.device_set == set(jax.devices())
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-5)


def test_a_score_that_cannot_be_read(workdir, tmp_path):
    path = copied(workdir, tmp_path)
    for text in ("{", "[]", '{"score": null}'):
        (path / "checkpoints" / "8" / "metrics" / "metrics").write_text(text)
        assert int(Run.open(path).load().step) == 8
        with pytest.raises(checkpoint.CheckpointError, match="8: cannot be read .metrics"):
            Run.open(path).load("best")
        with pytest.raises(checkpoint.CheckpointError), checkpoint.manager(path, 2):
            pass  # a training there


def test_names_of_version_0_2(images):
    """Codes were positions among the names of the dataset; heads had room for all of RxRx1."""
    found = _vocabulary_of_old(np.array([0, 1, 1107], np.int32), images)
    assert (len(found.cell_types), len(found.experiments), len(found.classes)) == (4, 51, 3)
    for column in ("experiment", "cell_type"):
        names = images.sites[column]
        expected = np.unique(names, return_inverse=True)[1]
        assert found.codes(column, names).tolist() == expected.tolist()


def test_corrections_of_a_run(own_run):
    """What the network itself says is what the run predicted; adapted it says something else."""
    _, workdir, _ = own_run
    names = ["none", "orientations", "adabn_experiment_controls", "adabn_plate"]
    tables = corrections.predictions_of(Run.open(workdir), names)
    own = pq.read_table(workdir / "predictions.parquet")
    for column in ("site_id", "label", "prediction", "well_prediction"):
        assert tables["none"][column].to_pylist() == own[column].to_pylist()
    np.testing.assert_allclose(tables["none"]["loss"], own["loss"], rtol=1e-5)
    losses = [tables[name]["loss"].to_numpy() for name in names]
    assert all((one != other).any() for one, other in itertools.combinations(losses, 2))
    assert Run.open(workdir).source == embeddings.source_of(workdir / "embeddings.parquet")


def test_embeddings_of_all_sites(own_run, tiny):
    """The last layer, applied to them in NumPy, says what the run predicted."""
    config, workdir, _ = own_run
    found = Run.open(workdir).embeddings()
    ids = found.sites["site_id"].tolist()
    assert sorted(ids) == sorted(tiny.rows)  # controls and unlabelled sites too
    split = {line["site_id"]: line["role"] for line in csv.DictReader(open(workdir / "split.csv"))}
    used = {tiny.rows[site_id]["experiment"] for site_id in split}
    for site_id, role in zip(ids, found.role, strict=True):
        row = tiny.rows[site_id]
        context = row["experiment"] in used and row["well_type"] != "treatment"
        assert role == split.get(site_id, "context" if context else "other")
    features = found.x
    run = Run.open(workdir)
    fc, classes = jax.device_get(run.load().ema_params["fc"]), run.vocabulary.classes
    logits = dict(zip(ids, features @ fc["kernel"] + fc["bias"], strict=True))
    own = pq.read_table(workdir / "predictions.parquet").to_pylist()
    assert all(classes[logits[row["site_id"]].argmax()] == row["prediction"] for row in own)
