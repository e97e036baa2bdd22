"""The leaderboard as a command: real runs on a small synthetic screen, and made-up ones."""

import dataclasses
import json
import os
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from children import run
from commands import run_command
from dataset_fixture import write_few
from finished_runs import all_right, make_run

from rxrx1_jax.data import embeddings
from rxrx1_jax.leaderboard import assess, jobs, scores, tables
from rxrx1_jax.leaderboard.scores import Job
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.training import run_dir, sweep
from rxrx1_jax.training.predictions import accuracies
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.workers import FAILED, Ending

METHODS_FILE = """
TRAINED = {
    "base": {},
    "raw": {"data.normalisation": "none"},
    "wrong": {"model.name": "resnet_nope"},
}
CORRECTIONS = {"base": ["none", "centre_scale_plate", "assign_once"]}
CONTROLS = {"elsewhere": ({"data.name": "rxrx1/nothing"}, {"base": "no gap"})}
"""


def command(config, workdir, *arguments, python=sys.executable):
    """The leaderboard of fold 0 and two seeds, with another program to run children with."""
    methods = workdir.parent / "methods.py"
    methods.write_text(METHODS_FILE)
    flags = [f"--config={config}", f"--methods={methods}", f"--workdir={workdir}"]
    workers = f"--workers={min(2, len(os.sched_getaffinity(0)))}"
    flags += ["--folds=0", "--seeds=0,1", workers, *arguments]
    return run("driver", "rxrx1_jax.leaderboard.__main__", *flags, PYTHON=str(python))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    sizes = {"huvec": 3, "rpe": 0, "hepg2": 0, "u2os": 0, "treatments": 3, "positive_controls": 6}
    return write_few(tmp_path_factory.mktemp("screen"), 4, 2, **sizes)[1]


@pytest.fixture(scope="module")
def worked(config_file, tmp_path_factory):
    """(WORKDIR, the command's result)."""
    workdir = tmp_path_factory.mktemp("worked") / "leaderboard"
    return workdir, command(config_file, workdir)


def cells(text):
    """{first cell: the others} of all tables of some Markdown."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line] for line in lines)}


@pytest.mark.long
def test_runs_corrections_and_the_page(worked):
    workdir, done = worked
    text = (workdir / "report" / "leaderboard.md").read_text()
    assert text in done.stdout, done.stderr
    assert done.code == 1  # a method failed, a screen is missing
    paths = {n: [workdir / n / f"batch-0-{seed}" for seed in (0, 1)] for n in ("base", "raw")}
    found = {
        name: [100 * run_dir.read_results(p)["accuracy"]["site"]["all"] for p in paths[name]]
        for name in paths
    }
    found["base + assign_once"] = [
        100 * accuracies(pq.read_table(p / "corrections/assign_once.parquet"))["site"]["all"]
        for p in paths["base"]
    ]
    rows = cells(text[: text.index("The gain in each fold")])
    for name, values in found.items():
        assert rows[name][0] == f"{np.mean(values):.1f}"
        if name != "base":
            gain = np.subtract(values, found["base"])
            assert float(rows[name][2].split()[0]) == pytest.approx(gain.mean(), abs=0.051)
    assert list(rows)[2] == "LDA-12" and "intensities" in text
    assert "base + centre_scale_plate" in rows
    assert [name.split(":")[0] for name in rows if name[:2] == "**"][0] == "**inductive"
    # The settings of each run are those of its method, fold and seed.
    config = json.loads((paths["raw"][1] / "config.json").read_text())
    assert (config["data"]["normalisation"], config["train"]["seed"]) == ("none", 1)
    pictures = re.findall('<img src="([^"]+)"', (workdir / "report" / "index.html").read_text())
    names = ("gains", "experiments", "map-experiment", "map-sirna")
    assert pictures == [f"{name}.svg" for name in names]


@pytest.mark.long
def test_the_diagnosis_is_that_of_the_embeddings(worked):
    workdir, done = worked
    path = workdir / "base" / "batch-0-0"
    table = embeddings.read(path / "embeddings.parquet")
    measured = diagnosis.measure(table.x, table.sites, Run.open(path).planted_sirnas())
    heading = done.stdout.index("Batch and biology")
    row = cells(done.stdout[heading:])["base"]
    for column, cell in zip(diagnosis.COLUMNS, row, strict=False):
        assert float(cell) == pytest.approx(measured[column][0], abs=0.06)


@pytest.mark.long
def test_what_fails_is_listed_and_does_not_stop_the_others(worked):
    workdir, done = worked
    said = done.stdout[done.stdout.index("Not in the tables") :]
    assert re.search("- wrong/batch-0-0, wrong/batch-0-1: .*model.name='resnet_nope'", said)
    assert re.search("- elsewhere/base/batch-0-0, .*rxrx1/nothing", said)
    assert not (workdir / "wrong").exists()  # it is known before a child is started


@pytest.mark.long
def test_nothing_is_repeated(worked, config_file, tmp_path):
    """The same command again starts no child, and --collect none."""
    workdir, first = worked
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/batch-*/**/*")}
    program = tmp_path / "program"
    said = tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\necho "error: called" >&2\nexit 1\n')
    program.chmod(0o755)
    again = command(config_file, workdir, python=program)
    assert "0 of 8 runs to do" in again.stdout and not said.exists(), again.stderr
    collected = command(config_file, workdir, "--collect", python=program)
    assert not said.exists() and "runs to do" not in collected.stdout
    tables_of = [d.stdout[d.stdout.index("Accuracy on") : d.stdout.index("Not in")] for d in
                 (first, again, collected)]  # fmt: skip
    assert tables_of[0] == tables_of[1] == tables_of[2]
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob("*/batch-*/**/*")}


@pytest.mark.long
def test_another_version_is_computed_again(worked, monkeypatch):
    path, name = worked[0] / "base" / "batch-0-0", "centre_scale_plate"
    assert assess.is_assessed(path, [name, assess.DIAGNOSIS])
    assert not assess.is_assessed(path, ["tvn_plate"])
    newer = dataclasses.replace(METHODS[name], version=METHODS[name].version + 1)
    monkeypatch.setitem(METHODS, name, newer)
    assert not assess.is_assessed(path, [name])
    assert scores.load_correction(path, name) is None
    monkeypatch.setattr(diagnosis, "VERSION", diagnosis.VERSION + 1)
    assert not assess.is_assessed(path, [assess.DIAGNOSIS])


def test_a_task_of_a_leaderboard_is_a_run_of_it(tmp_path, monkeypatch):
    (tmp_path / "methods.py").write_text("TRAINED = {'base': {}, 'raw': {'optim.momentum': 0.5}}")
    words = ["--config=smoke", f"--methods={tmp_path}/methods.py", f"--workdir={tmp_path}/runs"]
    words += ["--folds=0", "--seeds=0,1"]
    listed = run_command("leaderboard", *words, "--tasks")
    assert (listed.code, listed.out) == (0, "4\n")
    did = []

    def train(plan, *_):
        did.append(plan)
        return Ending(FAILED, "no")

    monkeypatch.setattr(sweep, "train_one", train)
    for number, name in enumerate(("base/batch-0-0", "raw/batch-0-0", "base/batch-0-1")):
        done = run_command("leaderboard", *words, f"--task={number}")
        assert done.code == 1 and done.last.endswith(f"{name}: no")
        assert did.pop().path == tmp_path / "runs" / name and not did
    beyond = run_command("leaderboard", *words, "--task=4")
    assert beyond.code == 1 and "--task=4" in beyond.last
    assert not (tmp_path / "runs" / "report").exists()


def test_an_old_reason_does_not_outlive_its_run(tmp_path):
    """Another command held the run when this one came by, and has completed it since."""
    unit = Unit("rxrx1/synthetic", 0, 0)
    asked = [Job("", "base", "batch", unit), Job("zero", "base", "batch", unit)]
    make_run(asked[0].path(tmp_path), all_right(3, 3))
    plans = {job: sweep.Plan(job.path(tmp_path), {}, 9, "") for job in asked}
    reasons = {plan.path: "held" for plan in plans.values()}
    done, failed = jobs.outcomes(plans, reasons)
    assert done.run and done.run.unit == unit and done.why == ""
    assert failed.run is None and failed.why == "held"
    assert tables.missing_list([done, failed]) == ["zero/base/batch-0-0: held"]
    assert jobs.outcomes(plans, {})[1].why == "not started"
