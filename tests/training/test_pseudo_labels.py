"""Training on pseudo-labels: blind to the test labels, exact on resume, in two processes."""

import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from children import end, start
from commands import run_command
from screens import params, tiny_config, tiny_images

from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.methods.evidence import SEEN
from rxrx1_jax.report import card
from rxrx1_jax.training import progress, run_dir, train
from rxrx1_jax.training.run import Run

NETWORK = {"model__name": "small_network.network", "train__eval_every": 0}


def student(teacher, **changes):
    return tiny_config(
        **NETWORK, data__pseudo_labels=str(teacher / "predictions.parquet"), **changes
    )


def shuffled_test_labels(images):
    """The same screen; the test sites have each other's siRNAs."""
    sites = images.sites
    labels = sites["sirna_id"].copy()
    test = (sites["dataset"] == "test") & (sites["well_type"] == "treatment") & (labels >= 0)
    labels[test] = np.roll(labels[test], 3)
    assert (labels != sites["sirna_id"]).any()
    return tiny_images(sirna_id=labels)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    train.train_and_evaluate(tiny_config(**NETWORK), workdir, tiny_images())
    return workdir


@pytest.fixture(scope="module")
def taught(teacher):
    workdir = teacher.parent / "student"
    results = train.train_and_evaluate(student(teacher), workdir, tiny_images())
    return workdir, results


def test_pseudo_labels_are_learned(teacher, taught, capsys):
    """The student differs from its teacher, and its split and scores are those of the teacher."""
    workdir, results = taught
    assert (workdir / "split.csv").read_text() == (teacher / "split.csv").read_text()
    one, two = (json.loads((run / "results.json").read_text()) for run in (teacher, workdir))
    assert one["data"] == two["data"]
    kernels = [np.asarray(params(run)[0]["fc"]["kernel"]) for run in (teacher, workdir)]
    assert (kernels[0] != kernels[1]).any()
    train.train_and_evaluate(student(teacher), workdir, tiny_images())
    assert "complete" in capsys.readouterr().out  # the same command knows its run


def test_labels_of_the_test_sites_are_never_seen(teacher, taught, tmp_path):
    blind = shuffled_test_labels(tiny_images())
    train.train_and_evaluate(tiny_config(**NETWORK), tmp_path / "teacher", blind)
    train.train_and_evaluate(student(tmp_path / "teacher"), tmp_path / "student", blind)
    for found, expected in ((tmp_path / "teacher", teacher), (tmp_path / "student", taught[0])):
        jax.tree.map(np.testing.assert_array_equal, params(found), params(expected))
        tables = [pq.read_table(run / "predictions.parquet") for run in (found, expected)]
        assert tables[0]["prediction"].equals(tables[1]["prediction"])
        assert not tables[0]["label"].equals(tables[1]["label"])


def test_an_interrupted_student_goes_on_to_the_same_bits(teacher, taught, tmp_path, monkeypatch):
    calls, log_step = [], progress.Log.train

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        log_step(self, *arguments)

    monkeypatch.setattr(progress.Log, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(student(teacher), tmp_path / "run", tiny_images())
    monkeypatch.undo()
    for changes, error in (
        ({"data__pseudo_share": 0.1}, run_dir.RunError),
        ({"data__pseudo_labels": str(tmp_path / "gone.parquet")}, DatasetError),
    ):
        with pytest.raises(error, match="data.pseudo"):
            other = tiny_config(**NETWORK, **({"data__pseudo_labels": str(
                teacher / "predictions.parquet")} | changes))  # fmt: skip
            train.train_and_evaluate(other, tmp_path / "run", tiny_images())
    results = train.train_and_evaluate(student(teacher), tmp_path / "run", tiny_images())
    assert results == taught[1]
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path / "run"), params(taught[0]))


def test_other_predictions_in_the_file_are_another_run(teacher, tmp_path):
    file = tmp_path / "predictions.parquet"
    file.write_bytes((teacher / "predictions.parquet").read_bytes())
    config = tiny_config(**NETWORK, data__pseudo_labels=str(file), train__max_steps=2)
    train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    table = pq.read_table(file)
    place, wells = table.column_names.index("well_prediction"), table["well_prediction"]
    moved = np.where(wells.to_numpy() == 0, 1, 0).astype(np.int32)
    pq.write_table(table.set_column(place, "well_prediction", [moved]), file)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(run_dir.RunError, match="dataset.taught"):
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())


def test_bad_predictions_are_told_in_one_line_before_work(tmp_path):
    file = tmp_path / "p.parquet"
    file.write_text("nothing")
    done = run_command(
        "main", "--config=smoke", f"--workdir={tmp_path}/run", f"--config.data.pseudo_labels={file}"
    )
    assert done.code == 1 and done.last.startswith("error: data.pseudo_labels=")
    assert not (tmp_path / "run").exists()


def test_the_budget_of_a_training_is_handed_on(teacher, taught, tmp_path, monkeypatch):
    """By model.init to the next run, and from that one to the next."""
    monkeypatch.setattr("rxrx1_jax.training.setup.find_images", lambda config: tiny_images())
    runs = [teacher, taught[0]]
    for name in ("child", "grandchild"):
        config = tiny_config(**NETWORK, model__init=str(runs[-1]), train__max_steps=2)
        train.train_and_evaluate(config, tmp_path / name, tiny_images())
        runs.append(tmp_path / name)
    budgets = ["inductive"] + 3 * ["unlabelled test images"]
    for run, budget in zip(runs, budgets, strict=True):
        done = run_command("correct", run, "--methods", "none", "centroids")
        assert done.code == 0, done.err
        lines = [line for line in done.out.splitlines() if line.startswith("|")]
        cells = [line.strip("| ").split("|")[0].strip(" *") for line in lines]
        assert [cell for cell in cells if cell in SEEN] == [budget], cells
        assert cells.index(budget) < cells.index("none") and "centroids" in cells
        said = card.card(Run.open(run), run_dir.read_results(run), "")
        assert f"{budget}: {SEEN[budget]}" in said


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one(teacher, tmp_path):
    config = student(
        teacher, data__sampler="plates(controls=0.25)",
        data__cell_type="HUVEC",
    )  # fmt: skip
    states = []
    for count in (1, 2):
        run = tmp_path / str(count)
        arguments = [json.dumps(config.to_dict()), run, tmp_path / "read", "train"]
        for code, _, stderr in end(start("work", *arguments, processes=count, devices=4)):
            assert code == 0, stderr
        states.append(params(run))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *states)
