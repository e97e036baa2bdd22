"""Whole runs in memory: results, exact resuming, both parallel modes, one-line errors."""

import csv
import json
import math

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_fixture import STEPS
from screens import params, tiny_config, tiny_images
from tiny_release import tiny_rows

from benchmarks.kill_training import TIMES
from rxrx1_jax.config import FIELDS
from rxrx1_jax.data import splits
from rxrx1_jax.data.images import METADATA, InMemory
from rxrx1_jax.training import checkpoint, evaluate, progress, run_dir, setup, train
from rxrx1_jax.training.run import Run


@pytest.fixture(scope="module")
def images():
    return tiny_images()


@pytest.fixture(scope="module")
def memory_run(images, tmp_path_factory):
    """(settings, workdir, results) of a run on images in memory."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config()
    return config, workdir, train.train_and_evaluate(config, workdir, images)


def curves(workdir, without=("images_per_second",)):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in without} for line in lines]


def test_a_run_leaves_its_results(memory_run, images):
    config, workdir, results = memory_run
    assert results == json.loads((workdir / "results.json").read_text())
    sites = images.sites
    test = (sites["dataset"] == "test") & (sites["well_type"] == "treatment")
    test = sites["site_id"][test & (sites["sirna_id"] >= 0)].tolist()
    table = pq.read_table(workdir / "predictions.parquet")
    assert sorted(table["site_id"].to_pylist()) == sorted(test)
    assert results["data"]["test_sites"] == len(test) and results["data"]["train_sites"] == 21
    assert results["data"]["classes"] == 3 and results["step"] == STEPS
    right = np.equal(table["prediction"].to_pylist(), table["label"].to_pylist())
    assert results["accuracy"]["site"]["all"] == right.mean()
    with open(workdir / "metadata.csv") as file:
        described = {row["site_id"]: row for row in csv.DictReader(file)}
    release = {row["site_id"]: row for row in tiny_rows()}
    roles = [row.pop("role") for row in described.values()]
    assert (roles.count("train"), roles.count("test")) == (21, len(test))
    assert described == {site: release[site] for site in described}
    for row in table.to_pylist():
        for name in ("sirna", "plate", "well", "experiment"):
            assert str(row[name]) == release[row["site_id"]][name]
        assert row["role"] == "test"
    for name in ("config.json", "environment.json", "*tfevents*"):
        assert list(workdir.glob(name))


def test_learning_curves(memory_run):
    lines = curves(memory_run[1])
    assert [line["step"] for line in lines if "train_loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "test_loss" in line] == [3, 5, 8]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    for line in lines:
        if "train_loss" in line:
            assert 0 < line["step_seconds_median"] <= line["step_seconds_95th_percentile"]
            assert 0 <= line["data_wait_share"] <= 1


def test_each_set_is_evaluated_once_a_step(images, tmp_path, monkeypatch):
    make, original, done = splits.configured, evaluate.evaluate_sites, []

    def with_val(*arguments):
        split = make(*arguments)
        return split._replace(test=split.test[4:], val=split.test[:4])

    def counting(ready, state, rows, notice):
        done.append((int(state.step), len(rows)))
        return original(ready, state, rows, notice)

    monkeypatch.setattr(splits, "configured", with_val)
    monkeypatch.setattr(evaluate, "evaluate_sites", counting)
    train.train_and_evaluate(tiny_config(), tmp_path / "run", images)
    assert sorted(done) == [(step, sites) for step in (3, 5, 8) for sites in (4, 6)]
    found = {line["step"]: line["val_accuracy"] for line in curves(tmp_path / "run")
             if "val_accuracy" in line}  # fmt: skip
    best = max(found, key=lambda step: (found[step], step))
    assert checkpoint.find(tmp_path / "run", "best").name == str(best)


def test_a_trial_is_a_part_of_the_wells_and_of_the_steps(images, tmp_path):
    config = tiny_config(train__max_steps=4, data__fraction=0.7, optim__batch_size=4)
    results = train.train_and_evaluate(config, tmp_path / "run", images)
    assert results["step"] == results["total_steps"] == 4
    learning_rates = [line["learning_rate"] for line in curves(tmp_path / "run")
                      if "train_loss" in line]  # fmt: skip
    assert learning_rates[0] == pytest.approx(config.optim.learning_rate)
    assert learning_rates[1] < 0.5 * learning_rates[0]
    whole, part = (splits.configured(images.sites, x.data) for x in (tiny_config(), config))
    for all_rows, rows in zip((whole.train, whole.test), (part.train, part.test), strict=True):
        wells = [set(images.sites["well_id"][x].tolist()) for x in (all_rows, rows)]
        assert wells[1] < wells[0] and len(wells[1]) == math.ceil(0.7 * len(wells[0]))
        kept = np.isin(images.sites["well_id"][all_rows], [*wells[1]])
        assert rows.tolist() == all_rows[kept].tolist()
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="data.fraction"):
            setup.prepare(tiny_config(data__fraction=fraction), images)


def test_the_same_command_on_a_finished_run_does_nothing(memory_run, images, capsys):
    config, workdir, results = memory_run
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train.train_and_evaluate(config, workdir, images) == results
    assert "nothing to do" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("stop", [4, 7])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    memory_run, images, tmp_path, monkeypatch, stop
):
    config, workdir, results = memory_run
    calls, log_step = [], progress.Log.train

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        log_step(self, *arguments)

    monkeypatch.setattr(progress.Log, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run", images)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "results.json").exists()
    described = (tmp_path / "run" / "metadata.csv").stat()
    assert train.train_and_evaluate(config, tmp_path / "run", images) == results
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path / "run"), params(workdir))
    assert pq.read_table(tmp_path / "run" / "predictions.parquet").equals(
        pq.read_table(workdir / "predictions.parquet")
    )
    assert curves(tmp_path / "run", TIMES) == curves(workdir, TIMES)
    assert (tmp_path / "run" / "metadata.csv").stat() == described  # written once


def test_a_run_continues_its_parent(memory_run, images, tmp_path):
    """2 epochs and 2 more. With a constant learning rate that is 4 at once: the same bits."""
    steady = dict(optim__schedule="constant", optim__warmup_epochs=0.0, train__eval_every=0)
    for name, changes in {
        "parent": {"optim__epochs": 2},
        "child": {"optim__epochs": 4, "train__parent": str(tmp_path / "parent")},
        "whole": {"optim__epochs": 4},
    }.items():
        config = tiny_config(**steady, **changes)
        results = train.train_and_evaluate(config, tmp_path / name, images)
        assert results.get("parent") == changes.get("train__parent")
    child, whole = (tmp_path / name for name in ("child", "whole"))
    jax.tree.map(np.testing.assert_array_equal, params(child), params(whole))
    steps = [line["step"] for line in curves(child) if "train_loss" in line]
    assert steps == [6, 8, 10]  # the parent ended at step 5
    for line in curves(child, TIMES):
        assert line in curves(whole, TIMES)
    saved = json.loads((child / "config.json").read_text())
    assert saved["train"]["parent"] == str(tmp_path / "parent")
    parent = {"train__parent": str(tmp_path / "parent")}
    for changes, said in (
        ({"optim__epochs": 2}, "optim.epochs=2"),
        ({"optim__epochs": 4, "optim__momentum": 0.8}, "optim.momentum"),
        ({"optim__epochs": 4, "data__normalisation": "site"}, "data.normalisation"),
    ):
        config = tiny_config(**steady, **parent, **changes)
        with pytest.raises(run_dir.RunError, match=said):
            train.train_and_evaluate(config, tmp_path / "refused", images)
        assert not (tmp_path / "refused").exists()
    with pytest.raises(run_dir.RunError, match="split"):
        config = tiny_config(**steady, **parent, optim__epochs=4)
        train.train_and_evaluate(config, tmp_path / "refused", tiny_images(dataset=np.where(
            images.sites["experiment"] == "U2OS-01", "test", images.sites["dataset"])))  # fmt: skip


def test_a_diverged_run_stops_and_keeps_the_checkpoint_before(images, tmp_path, monkeypatch):
    config, workdir = tiny_config(optim__epochs=20), tmp_path / "run"
    ready = setup.prepare(config, images)
    last = round(ready.steps_per_epoch)
    drawn, draw = [], setup.Setup.train_draws

    def poisoned(self, start, *calls):
        for step, one in enumerate(draw(self, start, *calls), start + 1):
            drawn.append(step)
            bad = step > last  # from the first step after a checkpoint on
            blank = one.chosen.at[..., 0].set(len(self.train_rows))
            yield one._replace(chosen=blank) if bad else one

    def blank_is_nan(self):
        store = original(self)
        mean = store.columns["mean"].at[-1].set(np.nan)
        return store._replace(columns=store.columns | {"mean": mean})

    original = setup.Setup.train_store
    monkeypatch.setattr(setup.Setup, "train_draws", poisoned)
    monkeypatch.setattr(setup.Setup, "train_store", blank_is_nan)
    with pytest.raises(FloatingPointError, match=f"step {last + 1}: loss is nan.* 8 of them with "):
        train.train_and_evaluate(config, workdir, images)
    found = json.loads((workdir / "diverged.json").read_text())
    assert found["step"] == last + 1 and found["loss"] == "nan"
    drawn.pop()
    assert max(drawn) <= last + 1 + progress.STEPS_AHEAD + 2  # two are drawn ahead
    kept = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    assert kept == [str(last)] and int(Run.open(workdir).load().step) == last
    assert not (workdir / "results.json").exists()


def test_constant_channels_make_no_nan(tmp_path):
    """A channel without signal, and a plate whose controls are black: a deviation of 0."""
    images = tiny_images()
    sites, planes = images.sites, images.planes.copy()
    black = (sites["experiment"] == "HUVEC-01") & (sites["plate"] == 1)
    planes[black & (sites["well_type"] != "treatment")] = 0
    planes[:, 1] = 7
    images = InMemory(planes, {name: sites[name] for name in METADATA})
    assert (images.sites["control_std"][:, 1] == 0).all()
    for normalisation in FIELDS["data.normalisation"].valid:
        config = tiny_config(optim__warmup_epochs=2.0, data__normalisation=normalisation)
        ready = setup.prepare(config, images)
        for batch in ready.batches(np.arange(len(images)), 64):
            assert np.isfinite(batch["image"]).all(), normalisation
    results = train.train_and_evaluate(config, tmp_path / "run", images)
    assert np.isfinite(results["loss"])


@pytest.mark.devices
def test_pmap_gives_the_same_run(images, tmp_path):
    config = tiny_config(train__parallelism="pmap", optim__warmup_epochs=0.0)
    pmap = train.train_and_evaluate(config, tmp_path / "pmap", images)
    config.train.parallelism = "jit"
    jit = train.train_and_evaluate(config, tmp_path / "jit", images)
    assert pmap["loss"] == pytest.approx(jit["loss"], abs=1e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
        params(tmp_path / "pmap"), params(tmp_path / "jit"),
    )  # fmt: skip
    # A checkpoint has one layout: the pmap run evaluates under jit.
    again = Run.open(tmp_path / "pmap", {"train.parallelism": "jit"}, images).evaluate(tmp_path)
    assert again["loss"] == pytest.approx(pmap["loss"], abs=1e-5)


def test_a_run_is_bound_to_its_data(memory_run, images):
    _, workdir, _ = memory_run
    assert Run.open(workdir, images=tiny_images()).setup  # the same data elsewhere
    for changed in (tiny_images(seed=1), tiny_images(sirna_id=images.sites["sirna_id"][::-1])):
        with pytest.raises(run_dir.RunError, match="dataset.data"):
            Run.open(workdir, images=changed).setup  # noqa: B018


def test_evaluate_and_predict_again(memory_run, images, tmp_path):
    _, workdir, results = memory_run
    before = pq.read_table(workdir / "predictions.parquet")
    run = Run.open(workdir, images=images)
    assert run.evaluate(tmp_path) == results
    assert pq.read_table(tmp_path / "predictions.parquet").equals(before)
    run.predict_all(tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    treatments = images.sites[images.sites["well_type"] == "treatment"]
    assert table["site_id"].to_pylist() == treatments["site_id"].tolist()
    unlabelled = np.array(table["label"].to_pylist()) == -1
    assert unlabelled.sum() == 2
    assert np.isnan(table["loss"].to_numpy()[unlabelled]).all()
    assert np.isfinite(table["loss"].to_numpy()[~unlabelled]).all()
    assert set(table["role"].to_pylist()) == {"train", "test", "other"}
    tested = table.filter(np.array(table["role"].to_pylist()) == "test")
    same = tested.sort_by("site_id")["prediction"], before.sort_by("site_id")["prediction"]
    assert same[0].to_pylist() == same[1].to_pylist()


def test_bfloat16_trains_to_nearly_the_same(memory_run, images, tmp_path):
    config = tiny_config(model__dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm mixes the two types
        results = train.train_and_evaluate(config, tmp_path / "run", images)
    assert results["loss"] != memory_run[2]["loss"]
    assert results["loss"] == pytest.approx(memory_run[2]["loss"], rel=0.05)
