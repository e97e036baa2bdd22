"""`python -m rxrx1_jax.ensemble` as a user types it: two seeds of a run, and their files."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import wilds_screen
from browser import check_page, needs_chromium
from commands import run_command
from finished_runs import edited

from rxrx1_jax.training import train
from rxrx1_jax.training.run import Run

WILDS = {
    "data.name": "wilds_screen.images()", "model.name": "resnet_demo", "model.width": 8,
    "optim.batch_size": 8, "eval.batch_size": 8, "optim.epochs": 1, "optim.warmup_epochs": 0,
    "optim.name": "sgd", "train.loggers": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(finished, once) -> list[Path]:
    """Two seeds, read only."""

    def make(folder: Path) -> None:
        config = finished.config.copy_and_resolve_references()
        config.train.seed = 1
        train.train_and_evaluate(config, folder / "second")

    return [finished.workdir, once("ensemble", make) / "second"]


def ensemble(*arguments):
    """(exit code, last line, all of stdout)"""
    done = run_command("ensemble", *arguments)
    if done.code:
        assert done.err.count("error: ") == 1 and done.last.startswith("error: "), done.err
    return done.code, done.last, done.out


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "out"
    code, last, said = ensemble(*runs, f"--out={folder}", "--submission=kaggle")
    assert code == 0, last
    assert "mean of 2 runs" in said and str(folder / "index.html") in said
    return folder


def test_the_mean_of_two_runs(out, runs):
    tables = [pq.read_table(run / "predictions.parquet") for run in runs]
    said = []
    for run in runs:
        own = Run.open(run)
        rows = np.flatnonzero(own.images.sites["well_type"] == "treatment")
        said.append(np.exp(own.predict(own.images, rows).log_probs.astype(np.float64)))
    file = pq.read_table(out / "log_probs.parquet")
    found = np.stack(file["log_probs"].to_numpy())
    np.testing.assert_allclose(found, np.log(np.mean(said, axis=0)), atol=1e-5)
    mean = pq.read_table(out / "predictions.parquet")
    assert mean["site_id"].to_pylist() == tables[0]["site_id"].to_pylist()
    records = json.loads((out / "runs.json").read_text())["rows"]
    for record, table in zip(records, [*tables, mean], strict=True):
        right = [table[name].to_numpy() == table["label"].to_numpy()
                 for name in ("prediction", "well_prediction")]  # fmt: skip
        first = np.unique(table["well_id"].to_pylist(), return_index=True)[1]
        assert record["by site"] == pytest.approx(100 * right[0].mean())
        assert record["by well"] == pytest.approx(100 * right[1][first].mean())
    assert [record["predictions of"] for record in records][:2] == [run.name for run in runs]


def test_the_files_beside_the_page(out):
    with open(out / "submission.csv", newline="") as file:
        wells = list(csv.DictReader(file))
    assert [row["id_code"] for row in wells] == sorted(row["id_code"] for row in wells)
    assert all(row["id_code"].startswith("HUVEC-02") for row in wells) and len(wells) == 6
    assert {"0", "1", "1107"} >= {row["sirna"] for row in wells}
    assert len(list(csv.DictReader(open(out / "sirnas.csv")))) == 3


@needs_chromium
def test_nothing_is_wider_than_the_page(out, tmp_path):
    check_page(out / "index.html", tmp_path)


def test_what_is_there_is_not_predicted_again(out, runs, monkeypatch):
    before = (out / "log_probs.parquet").read_bytes()
    monkeypatch.setattr(Run, "predict_all", lambda *_, **__: pytest.fail("predicted again"))
    assert ensemble(*runs, f"--out={out}")[0] == 0
    assert (out / "log_probs.parquet").read_bytes() == before
    with pytest.raises(pytest.fail.Exception):
        ensemble(*runs, f"--out={out}", "--orientations")


def test_one_run_is_its_own_mean(runs, tmp_path):
    place = tmp_path / "out"
    code, _, said = ensemble(runs[0], f"--out={place}", "--submission=kaggle")
    assert code == 0 and "mean of" not in said and (place / "submission.csv").exists()
    own, kept = (pq.read_table(path / "predictions.parquet") for path in (runs[0], place))
    assert kept["site_id"].equals(own["site_id"]) and kept["prediction"].equals(own["prediction"])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--submission=wilds"], "data.protocol"),
        (["--decide=assign_once"], "--submission=kaggle"),
        # The tiny release has a siRNA twice in an experiment.
        (["--submission=kaggle", "--decide=assign_once"], "more than once"),
        (["--out=/dev/null/out"], "/dev/null"),
        (["{first}"], "given twice"),
        (["nowhere"], "no run"),
    ],
)
def test_what_is_refused_before_work(runs, tmp_path, monkeypatch, options, said):
    monkeypatch.setattr(Run, "log_probs", lambda *_: pytest.fail("work has begun"))
    options = [option.format(first=runs[0]) for option in options]
    code, last, _ = ensemble(f"--out={tmp_path / 'out'}", *runs, *options)
    assert code in (1, 2) and said in last, last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["classes", "split", "data", "metadata"])
def test_runs_that_do_not_go_together(runs, tmp_path, monkeypatch, what):
    monkeypatch.setattr(Run, "log_probs", lambda *_: pytest.fail("work has begun"))
    own = shutil.copytree(runs[1], tmp_path / "own")
    together, said = [runs[0], own], f"differ in {what}"
    if what in ("split", "data"):
        with edited(own / "config.json") as config:
            config["dataset"][what] = "4711"
        with edited(own / "checkpoints" / "8" / "about" / "metadata") as about:
            about["fingerprint"][what] = "4711"
    elif what == "classes":
        with edited(own / "checkpoints" / "8" / "about" / "metadata") as about:
            about["vocabulary"]["classes"][0] += 5
    else:
        together, said = [own], "metadata.csv"
        (own / "metadata.csv").write_text("a,b\n")
    code, last, _ = ensemble(*together, f"--out={tmp_path / 'out'}", "--submission=kaggle")
    assert code == 1 and said in last and str(own) in last, last


def test_files_for_wilds(tmp_path):
    """Every site of the release is there, labelled or not."""
    fields = [f"--config.{field}={value}" for field, value in WILDS.items()]
    done = run_command("main", "--config=wilds", f"--workdir={tmp_path / 'run'}", *fields)
    assert done.code == 0, done.err
    options = f"--out={tmp_path / 'out'}", "--submission=wilds"
    code, last, said = ensemble(tmp_path / "run", *options)
    assert code == 0 and "WILDS scores seeds 0, 1 and 2" in said, last
    rows = wilds_screen.rows()
    # fmt: off
    sets = {"test": [r for r in rows if r["experiment"] == "U2OS-05"],
            "val": [r for r in rows if r["experiment"] == "HUVEC-17"],
            "id_test": [r for r in rows if (r["experiment"], r["site"]) == ("HUVEC-01", "2")]}
    # fmt: on
    for name, of in sets.items():
        file = f"rxrx1_split:{name}_seed:0_epoch:last_pred.csv"
        lines = list(map(int, (tmp_path / "out" / "rxrx1" / file).read_text().split()))
        assert len(lines) == len(of)
        suffix = "" if name == "test" else f"_{name}"
        told = pq.read_table(tmp_path / "run" / f"predictions{suffix}.parquet")
        told = dict(zip(*(told[x].to_pylist() for x in ("site_id", "prediction")), strict=True))
        known = [(told[row["site_id"]], line) for row, line in zip(of, lines, strict=True)
                 if row["site_id"] in told]  # fmt: skip
        assert known and all(expected == line for expected, line in known)
