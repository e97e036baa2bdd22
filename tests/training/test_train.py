"""Whole runs on the tiny release: results, exact resuming, both parallel modes, one-line errors."""

import csv
import itertools
import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run_command
from dataset_fixture import STEPS, build, make_config, write_config
from PIL import Image

from benchmarks.kill_training import TIMES
from rxrx1_jax.data import embeddings, input_pipeline, records
from rxrx1_jax.methods import corrections
from rxrx1_jax.training import checkpoint, embed, parallel, progress, run_dir, train


def curves(workdir, without=("images_per_second",)):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in without} for line in lines]


def test_a_run_leaves_its_results(finished, tiny):
    config, workdir, results = finished
    assert results == json.loads((workdir / "results.json").read_text())
    test = [
        row for row in tiny.rows.values()
        if row["dataset"] == "test" and row["well_type"] == "treatment" and row["sirna_id"] != "-1"
    ]  # fmt: skip
    table = pq.read_table(workdir / "predictions.parquet")
    assert sorted(table["site_id"].to_pylist()) == sorted(row["site_id"] for row in test)
    assert results["data"]["test_sites"] == len(test) and results["data"]["train_sites"] == 21
    assert results["data"]["classes"] == 3 and results["step"] == STEPS
    right = np.equal(table["prediction"].to_pylist(), table["label"].to_pylist())
    assert results["accuracy"]["site"]["all"] == right.mean()
    roles = (workdir / "split.csv").read_text().split()[1:]
    assert sum(line.endswith(",train") for line in roles) == 21
    for name in ("config.json", "environment.json", "tensorboard"):
        assert (workdir / name).exists()


def test_learning_curves(finished):
    lines = curves(finished[1])
    assert [line["step"] for line in lines if "train_loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "test_loss" in line] == [3, 5, 8]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    for line in lines:
        if "train_loss" in line:
            assert 0 < line["step_seconds_median"] <= line["step_seconds_95th_percentile"]
            assert 0 <= line["data_wait_share"] <= 1


def test_the_same_command_on_a_finished_run_does_nothing(own_run, capsys):
    config, workdir, results = own_run
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train.train_and_evaluate(config, workdir) == results
    assert "complete" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("stop", [4, 7])
def test_an_interrupted_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch, stop):
    config, workdir, results = finished
    calls = 0

    def interrupted(*args, **kwargs):
        wrapped = original(*args, **kwargs)

        def step(state, batch):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return wrapped.train_step(state, batch)

        return wrapped._replace(train_step=step)

    original = parallel.parallelise
    monkeypatch.setattr(parallel, "parallelise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "results.json").exists()
    assert train.train_and_evaluate(config, tmp_path / "run") == results
    again, _ = checkpoint.load_params(tmp_path / "run")
    once, _ = checkpoint.load_params(workdir)
    jax.tree.map(np.testing.assert_array_equal, again, once)
    assert pq.read_table(tmp_path / "run" / "predictions.parquet").equals(
        pq.read_table(workdir / "predictions.parquet")
    )
    assert curves(tmp_path / "run", TIMES) == curves(workdir, TIMES)


def test_a_diverged_run_stops_and_keeps_the_checkpoint_before(tiny, tmp_path, monkeypatch):
    drawn, made = [], train.train_batches

    def poisoned(config, task, start):
        for step, batch in enumerate(made(config, task, start), start + 1):
            drawn.append(step)
            bad = step > round(task.steps_per_epoch)  # from the first step after a checkpoint on
            yield {**batch, "image": batch["image"] * np.nan} if bad else batch

    monkeypatch.setattr(train, "train_batches", poisoned)
    config, workdir = make_config(tiny.dataset, optim__epochs=20), tmp_path / "run"
    last = round(train.prepare(config).steps_per_epoch)
    with pytest.raises(FloatingPointError, match=f"step {last + 1}: loss is nan.* 8 "):
        train.train_and_evaluate(config, workdir)
    # The sites of the step at fault, which were drawn again to name them.
    report = json.loads((workdir / "diverged.json").read_text())
    task = train.prepare(config)
    batch = next(made(config, task, last))
    ids = task.records.sites["site_id"][np.asarray(batch["site_index"])].tolist()
    assert report["step"] == last + 1 and report["loss"] == "nan"
    assert report["site_ids"] == report["not_finite"] == ids
    drawn.pop()
    assert max(drawn) <= last + 1 + progress.STEPS_AHEAD
    assert checkpoint.load_params(workdir)
    kept = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    assert kept == [str(last)]
    assert not (workdir / "results.json").exists()


def test_constant_channels_make_no_nan(tiny, tmp_path):
    """A channel without signal, and a plate whose controls are black: a standard deviation of 0."""
    release = tmp_path / "release" / "rxrx1"
    shutil.copytree(tiny.release, release)
    for path in release.glob("images/*/*/*.png"):
        plate, black = "/".join(path.parts[-3:-1]), path.name[:3] in ("B02", "C03", "C07")
        if path.name.endswith("_w2.png"):
            Image.fromarray(np.full((16, 16), 7, np.uint8)).save(path)
        elif plate == "HUVEC-01/Plate1" and black:
            Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    config = make_config(build(release, tmp_path / "data"), optim__warmup_epochs=2.0)
    task = train.prepare(config)
    assert (task.records.sites["control_std"][:, 1] == 0).all()
    for normalisation in input_pipeline.NORMALISATIONS:
        rows = np.arange(len(task.records))
        for batch in input_pipeline.eval_batches(
            task.records, rows, task.split, batch_size=64, normalisation=normalisation
        ):
            assert np.isfinite(batch["image"]).all(), normalisation
    results = train.train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(results["loss"])


@pytest.mark.devices
def test_pmap_gives_the_same_run(tiny, tmp_path):
    config = make_config(tiny.dataset, train__parallelism="pmap", optim__warmup_epochs=0.0)
    pmap = train.train_and_evaluate(config, tmp_path / "pmap")
    config.train.parallelism = "jit"
    jit = train.train_and_evaluate(config, tmp_path / "jit")
    assert pmap["loss"] == pytest.approx(jit["loss"], abs=1e-4)
    a, b = (checkpoint.load_params(tmp_path / name)[0] for name in ("pmap", "jit"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a, b)
    # A checkpoint has one layout: the pmap run evaluates under jit.
    assert train.evaluate_run(config, tmp_path / "pmap")["loss"] == pytest.approx(
        pmap["loss"], abs=1e-5
    )


def test_a_run_is_bound_to_its_data(own_run, tiny, tmp_path):
    config, workdir, _ = own_run
    copy = tmp_path / "rxrx1" / "tiny" / tiny.dataset.name
    shutil.copytree(tiny.dataset, copy)
    config = config.copy_and_resolve_references()
    config.data.dir = str(tmp_path)
    train.evaluate_run(config, workdir)  # the same data elsewhere
    # Another, equally valid dataset: other pixels of one site.
    from tfds_builder.rxrx1 import table

    rows = pq.read_table(copy / table.FILE)
    number, changed = rows.column_names.index("adler32"), rows["adler32"].to_numpy().copy()
    changed[0] ^= 1
    rows = rows.set_column(number, "adler32", [changed])
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["table"] = table.write(rows, copy, dict(metadata["table"]["files"]), 16)
    (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(run_dir.RunError, match="dataset.data="):
        train.evaluate_run(config, workdir)


def test_evaluate_and_predict_again(own_run):
    config, workdir, results = own_run
    before = pq.read_table(workdir / "predictions.parquet")
    assert train.evaluate_run(config, workdir) == results
    table = pq.read_table(train.predict_run(config, workdir))
    sites = records.Records(records.find_dataset(config.data.dir, config.data.name)).sites
    treatments = sites[sites["well_type"] == "treatment"]
    assert table["site_id"].to_pylist() == treatments["site_id"].tolist()
    unlabelled = np.array(table["label"].to_pylist()) == -1
    assert unlabelled.sum() == 2
    assert np.isnan(table["loss"].to_numpy()[unlabelled]).all()
    assert np.isfinite(table["loss"].to_numpy()[~unlabelled]).all()
    assert set(table["role"].to_pylist()) == {"train", "test", "other"}
    tested = table.filter(np.array(table["role"].to_pylist()) == "test")
    same = tested.sort_by("site_id")["prediction"], before.sort_by("site_id")["prediction"]
    assert same[0].to_pylist() == same[1].to_pylist()


def test_bfloat16_trains_to_nearly_the_same(finished, tiny, tmp_path):
    config = make_config(tiny.dataset, model__dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm mixes the two types
        results = train.train_and_evaluate(config, tmp_path / "run")
    assert results["loss"] != finished[2]["loss"]
    assert results["loss"] == pytest.approx(finished[2]["loss"], rel=0.05)


def test_modes_of_the_command_line(own_run, tmp_path):
    config, workdir, results = own_run
    path = write_config(config, tmp_path / "config.py")
    for mode, said in [
        ("train", "complete"),
        ("evaluate", f"{results['accuracy']['site']['all']:.4f}"),
        ("predict", "predictions_all.parquet"),
    ]:
        found = run_command("main", f"--config={path}", f"--workdir={workdir}", f"--mode={mode}")
        assert found.code == 0, found.err
        assert said in found.last


def test_report_reads_the_run(finished, tmp_path):
    code, _, out, _ = run_command("report", finished.workdir, f"--out={tmp_path / 'page'}")
    assert code == 0 and (tmp_path / "page" / "index.html").exists()
    assert "44.1" in out  # the paper's figure stands beside


def test_runs_that_cannot_work_are_refused_before_training(tiny, tmp_path):
    for changes, message in [
        ({"data__crop": 17}, "data.crop=17.*16"),
        ({"optim__batch_size": 24}, "batch_size=24.* 21 "),
        ({"data__fold": 1}, "fold 1"),
        ({"data__cell_type": "CHO"}, "'CHO'.*HUVEC"),
        ({"data__name": "rxrx1/native"}, "rxrx1/native"),
    ]:
        with pytest.raises(ValueError, match=message):
            train.train_and_evaluate(make_config(tiny.dataset, **changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(run_dir.RunError, match="config.json"):
        train.evaluate_run(make_config(tiny.dataset), tmp_path / "run")


def test_unlabelled_sites_have_no_class(tiny):
    dataset = records.Records(tiny.dataset)
    split = train.prepare(make_config(tiny.dataset)).split
    rows = np.flatnonzero(dataset.sites["sirna_id"] == -1)
    (batch,) = input_pipeline.eval_batches(dataset, rows, split, batch_size=2, normalisation="none")
    assert batch["label"].tolist() == [-1, -1]


def test_corrections_of_a_run(own_run):
    """What the network itself says is what the run predicted; adapted it says something else."""
    _, workdir, _ = own_run
    names = ["none", "orientations", "adabn_experiment_controls", "adabn_plate"]
    tables = corrections.correct(workdir, names)
    own = pq.read_table(workdir / "predictions.parquet")
    for column in ("site_id", "label", "prediction", "well_prediction"):
        assert tables["none"][column].to_pylist() == own[column].to_pylist()
    np.testing.assert_allclose(tables["none"]["loss"], own["loss"], rtol=1e-5)
    losses = [tables[name]["loss"].to_numpy() for name in names]
    assert all((one != other).any() for one, other in itertools.combinations(losses, 2))
    assert embed.source(workdir) == embeddings.source_of(workdir / "embeddings.parquet")


def test_embeddings_of_all_sites(own_run, tiny):
    """The last layer, applied to them in NumPy, says what the run predicted."""
    config, workdir, _ = own_run
    found = embeddings.read(embed.embed_run(config, workdir))
    ids = found.sites["site_id"].tolist()
    assert sorted(ids) == sorted(tiny.rows)  # controls and unlabelled sites too
    split = {line["site_id"]: line["role"] for line in csv.DictReader(open(workdir / "split.csv"))}
    used = {tiny.rows[site_id]["experiment"] for site_id in split}
    for site_id, role in zip(ids, found.role, strict=True):
        row = tiny.rows[site_id]
        context = row["experiment"] in used and row["well_type"] != "treatment"
        assert role == split.get(site_id, "context" if context else "other")
    features = found.x
    variables, classes = checkpoint.load_params(workdir)
    fc = variables["params"]["fc"]
    logits = dict(zip(ids, features @ fc["kernel"] + fc["bias"], strict=True))
    own = pq.read_table(workdir / "predictions.parquet").to_pylist()
    assert all(classes[logits[row["site_id"]].argmax()] == row["prediction"] for row in own)
