"""The leaderboard: real runs on a small synthetic screen, and its arithmetic on made-up runs."""

import dataclasses
import importlib
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dataset_fixture import write_few
from scipy import stats

from configs import demo
from rxrx1_jax import config as config_lib
from rxrx1_jax import correct, diagnose
from rxrx1_jax.leaderboard import __main__ as leaderboard
from rxrx1_jax.leaderboard import assess, embedding_map, figures, scores, tables
from rxrx1_jax.leaderboard import methods as methods_lib
from rxrx1_jax.leaderboard.scores import Outcome, Row
from rxrx1_jax.methods import evidence as corrections
from rxrx1_jax.report.runs import Run
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.predictions import accuracies

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from rxrx1_jax.leaderboard import __main__ as leaderboard
sys.executable = {python!r}
sys.exit(leaderboard.main(sys.argv[1:]))
"""
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
    return subprocess.run(
        [sys.executable, "-c", DRIVER.format(python=str(python)), *flags, "--folds=0",
         "--seeds=0,1", f"--workers={min(2, len(os.sched_getaffinity(0)))}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


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
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


class Pictures(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def test_runs_corrections_and_the_page(worked):
    workdir, done = worked
    text = (workdir / "report" / "leaderboard.md").read_text()
    assert text in done.stdout, done.stderr
    assert done.returncode == 1  # a method failed, a screen is missing
    paths = {n: [workdir / n / f"batch-0-{seed}" for seed in (0, 1)] for n in ("base", "raw")}
    found = {
        name: [100 * run_dir.read_results(p)["accuracy"]["site"]["all"] for p in paths[name]]
        for name in paths
    }
    found["base + assign_once"] = [
        100 * accuracies(pq.read_table(p / "corrections/assign_once.parquet"))["site"]["all"]
        for p in paths["base"]
    ]
    rows = cells(text[: text.index("Batch and biology")])
    for name, values in found.items():
        assert rows[name][0] == f"{np.mean(values):.1f}"
        assert rows[name][1] == f"{np.std(values, ddof=1):.1f}"
        if name != "base":
            gain = np.subtract(values, found["base"])
            assert float(rows[name][6]) == pytest.approx(gain.mean(), abs=0.051)
    assert {"base + centre_scale_plate", "**inductive: the image, and the control statistics of "
            "its plate that normalise it**"} <= rows.keys()  # fmt: skip
    # The settings of each run are those of its method, fold and seed.
    config = json.loads((paths["raw"][1] / "config.json").read_text())
    assert (config["data"]["normalisation"], config["train"]["seed"]) == ("none", 1)
    pictures = Pictures()
    pictures.feed((workdir / "report" / "index.html").read_text())
    assert pictures.sources == ["gains.png", "experiments.png", "maps.png"]
    for name in pictures.sources:
        assert (workdir / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_the_diagnosis_is_that_of_the_embeddings(worked):
    workdir, done = worked
    measured = diagnose.measure(*diagnose.control_embeddings(workdir / "base" / "batch-0-0"))
    heading = done.stdout.index("Batch and biology")
    row = cells(done.stdout[heading:])["base"]
    for column, cell in zip(diagnose.COLUMNS, row, strict=False):
        assert float(cell) == pytest.approx(measured[column][0], abs=0.06)


def test_what_fails_is_listed_and_does_not_stop_the_others(worked):
    workdir, done = worked
    assert "- wrong/batch-0-0, wrong/batch-0-1: model.name='resnet_nope': expected one of" in (
        done.stdout
    )
    assert re.search(
        r"- elsewhere/base/batch-0-0, .*: dataset rxrx1/nothing not found", done.stdout
    )
    # Refused once, a method is not tried again for its other seed; else it would have two logs.
    logs = [log.name for log in (workdir / "wrong").glob("*.log")]
    assert len(logs) == 1 or len(os.sched_getaffinity(0)) > 1


def test_nothing_is_repeated(worked, config_file, tmp_path):
    """The same command again starts children only for what failed; --collect none."""
    workdir, first = worked
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/batch-*/**/*")}
    program = tmp_path / "program"
    said = tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\necho "error: called" >&2\nexit 1\n')
    program.chmod(0o755)
    again = command(config_file, workdir, python=program)
    assert "2 of 8 runs to do" in again.stdout, again.stderr
    assert "resnet_nope" in said.read_text()
    assert not re.search(r"/(base|raw)/", said.read_text())
    said.unlink()
    collected = command(config_file, workdir, "--collect", python=program)
    assert not said.exists() and "runs to do" not in collected.stdout
    tables_of = [d.stdout[d.stdout.index("Accuracy on") : d.stdout.index("Not in")] for d in
                 (first, again, collected)]  # fmt: skip
    assert tables_of[0] == tables_of[1] == tables_of[2]
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob("*/batch-*/**/*")}


def test_a_changed_correction_is_computed_again(worked, monkeypatch, tmp_path):
    path, name = worked[0] / "base" / "batch-0-0", "centre_scale_plate"
    assert assess.is_assessed(path, [name, assess.DIAGNOSIS])
    assert not assess.is_assessed(path, ["tvn_plate"])
    (tmp_path / "changed_methods.py").write_text("def changed(evidence):\n    return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("changed_methods").changed
    other = dataclasses.replace(corrections.METHODS[name], function=function)
    stored = pq.read_table(path / "corrections" / f"{name}.parquet")
    monkeypatch.setitem(corrections.METHODS, name, other)
    assess.stamp.cache_clear()
    try:
        assert not assess.is_assessed(path, [name])
        assert scores.load_correction(path, name) is None
        assert correct.stamp(other).encode() != stored.schema.metadata[b"method"]
    finally:
        assess.stamp.cache_clear()


# Arithmetic, on made-up runs of three folds and two seeds.
KEYS = list(product(range(3), range(2)))


def made_up(rng, low=0.2, high=0.9):
    """Accuracies of one run, as predictions.accuracies gives them."""
    cell_types = {name: rng.uniform(low, high) for name in ("HUVEC", "RPE")}
    experiments = {f"{name}-0{k}": rng.uniform(low, high) for name in cell_types for k in (1, 2)}
    kinds = {"cell_type": cell_types, "experiment": experiments}
    return {
        "site": {"all": rng.uniform(low, high), **kinds},
        "well": {"all": rng.uniform(low, high), **kinds},
        "top5": rng.uniform(low, high),
    }


def outcome(accuracy, key, trained="base", protocol="batch", control=""):
    results = {
        "data": {"name": "rxrx1/x", "version": "1", "source": "synthetic", "classes": 4,
                 "image_size": 16},
        "model": "m",
    }  # fmt: skip
    path = Path("nowhere") / f"{control}{trained}{protocol}{key}"
    return Outcome(control, trained, protocol, *key, Run(path, {}, results, [], accuracy), "")


@pytest.fixture
def methods():
    return methods_lib.Methods(
        {"base": {}, "other": {}, "wide": {}},
        {"base": (), "other": (), "wide": ()},
        ("base", "other"),
        {"base": "inductive", "other": "inductive", "wide": "design"},
        {"zero": methods_lib.Control({}, {"base": "no gap", "other": "gap"})},
    )


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    found = [outcome(made_up(rng), key, name) for name in ("wide", "base", "other") for key in KEYS]
    for protocol in ("random_site", "random_well"):
        found += [outcome(made_up(rng), key, "base", protocol) for key in KEYS]
    # A run less than the others: what is paired with it must be left out, too.
    return [o for o in found if not (o.trained == "other" and o.key == (2, 1))]


def frame(outcomes):
    return pd.DataFrame(
        {
            "trained": o.trained, "protocol": o.protocol, "fold": o.fold, "seed": o.seed,
            "site": o.run.accuracy["site"]["all"], "well": o.run.accuracy["well"]["all"],
            "top5": o.run.accuracy["top5"],
            "macro": pd.Series(o.run.accuracy["site"]["cell_type"]).mean(),
            "worst": pd.Series(o.run.accuracy["site"]["experiment"]).min(),
        }
        for o in outcomes
    )  # fmt: skip


def test_accuracy_table_against_pandas(methods, outcomes):
    table = tables.accuracy_table(methods, scores.make_rows(methods, outcomes), runs=6)
    data = frame(outcomes).query("protocol == 'batch'")
    names = [row[0] for kind, row in table.rows if not kind]
    assert names == ["base", "other (n = 5)", "wide"]  # by budget
    assert [kind for kind, _ in table.rows] == ["heading", "", "", "heading", ""]
    assert table.head[9:] == ["fold 0", "fold 1", "fold 2"]
    base = data.query("trained == 'base'").set_index(["fold", "seed"])["site"]
    for _, row in (pair for pair in table.rows if not pair[0]):
        mine = data[data.trained == row[0].split()[0]]
        folds = 100 * mine.groupby("fold")[["site", "well", "top5", "macro", "worst"]].mean()
        expected = [f"{m:.1f} ± {sd:.1f}" for m, sd in zip(folds.mean(), folds.std(), strict=True)]
        assert [row[1], *row[3:7]] == expected
        centred = mine.site - mine.groupby("fold")["site"].transform("mean")
        pooled = np.sqrt((centred**2).sum() / (len(mine) - 3))
        assert row[2] == f"{100 * pooled:.1f}"
        if row[0] == "base":
            assert row[7:] == ["–"] * 5
            continue
        pairs = 100 * (mine.set_index(["fold", "seed"])["site"] - base).dropna()
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        assert row[7:9] == [f"{pairs.mean():+.1f}", f"{low:+.1f} to {high:+.1f}"]
        assert row[9:] == [f"{value:+.1f}" for value in pairs.groupby("fold").mean()]
    assert re.search(r"\d of 2 intervals exclude 0; .* about 0.1 of them", table.notes[-1])


def test_gap_table_against_pandas(methods, outcomes):
    table = tables.gap_table(methods, outcomes)
    ((_, row),) = table.rows  # `other` has no random runs
    data = frame(outcomes).query("trained == 'base'")
    wide = data.pivot(index=["fold", "seed"], columns="protocol", values="site")
    for protocol, part in (("random_site", row[4:7]), ("random_well", row[7:10])):
        pairs = 100 * (wide[protocol] - wide["batch"])
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        ratio = wide[protocol].mean() / wide["batch"].mean()
        assert part == [f"{pairs.mean():+.1f}", f"{low:+.1f} to {high:+.1f}", f"{ratio:.2f}"]


def test_one_run_has_no_spread():
    one = scores.summarise({(0, 0): 0.5})
    assert one.mean == 0.5 and math.isnan(one.over_folds) and math.isnan(one.over_seeds)
    assert scores.difference({(0, 0): 0.5}, {(1, 0): 0.5}) is None
    assert tables.gain_cells(scores.difference({(0, 0): 0.5}, {(0, 0): 0.2})) == ["+30.0", "–"]


@pytest.mark.parametrize(
    ("claim", "batch", "random", "held"),
    [
        ("no gap", [0.50, 0.52, 0.49], [0.51, 0.50, 0.50], True),
        ("no gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], False),
        ("no gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], False),  # nor the other way round
        ("gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], True),
        ("gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], False),
        ("chance", [0.24, 0.26, 0.25], [0.25, 0.23, 0.26], True),
        ("chance", [0.24, 0.26, 0.25], [0.40, 0.41, 0.42], False),
        ("chance", [0.10, 0.11, 0.12], [0.25, 0.23, 0.26], False),
        ("gap", [0.5, 0.51], [0.6, 0.61], None),
    ],
)
def test_verdicts_on_controls(methods, claim, batch, random, held):
    controls = {"zero": methods_lib.Control({}, {"base": claim})}
    runs = []
    for protocol, values in (("batch", batch), ("random_site", random)):
        for fold, value in enumerate(values):
            accuracy = {"site": {"all": value}}
            runs.append(outcome(accuracy, (fold, 0), "base", protocol, "zero"))
    table = tables.control_table(methods._replace(controls=controls), runs)
    ((_, row),) = table.rows
    assert row[4] == tables.MUST[claim]
    assert row[6] == {True: "holds", False: "DOES NOT HOLD", None: "–"}[held]
    pairs = 100 * (np.array(random) - batch)
    if held is None:
        assert row[5] == "too few runs"
    elif claim != "chance":
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        assert row[5] == f"gap {pairs.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def test_budgets_join():
    assert scores.budget_of("inductive", "none") == "inductive"
    assert scores.budget_of("unlabelled test images", "centre_scale_plate") == (
        "unlabelled test images"
    )
    assert scores.budget_of("inductive", "assign_once") == "design"


def test_the_best_of_each_budget_is_shown():
    def row(name, budget, value):
        return Row(name, "none", budget, {(0, 0): {"site": {"all": value}}})

    rows = [row("base", "inductive", 0.9), row("a", "inductive", 0.1), row("b", "inductive", 0.2),
            row("c", "design", 0.3)]  # fmt: skip
    assert [r.name for r in figures.choose_rows(rows, "base")] == ["base", "b", "c"]


# The methods file.


def load(tmp_path, text):
    path = tmp_path / "methods.py"
    path.write_text(text)
    return methods_lib.load(str(path), demo.get_config())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TRAINED = {}", "expected TRAINED = "),
        (
            "TRAINED = {'a': {'data.normalization': 'none'}}",
            r"TRAINED\['a'\] sets data.normalization: no such field; expected data.normalisation",
        ),
        ("TRAINED = {'a': {'optim.epochs': '3'}}", "optim.epochs='3': expected int, like 40"),
        ("TRAINED = {'a': {'data.fold': 1}}", "sets data.fold: the command does"),
        ("TRAINED = {'a/b': {}}", "method 'a/b': expected letters"),
        ("TRAINED = {'controls': {}}", "method 'controls': expected letters"),
        ("TRAINED = {'a': {}}; GAP = ['b']", "GAP has 'b': expected a"),
        ("TRAINED = {'a': {}}; CORRECTIONS = {'a': ['adabn']}", "has 'adabn': expected adabn_"),
        ("TRAINED = {'a': {}}; BUDGETS = {'a': 'controls'}", "expected test controls"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({'x.y': 1}, {})}", r"CONTROLS\['c'\] sets x.y"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({}, {'b': 'gap'})}", "has 'b': expected a"),
        ("TRAINED = {'a': {}}; CONTROLS = {'c': ({}, {'a': 'nogap'})}", "expected no gap or gap"),
    ],
)
def test_faults_of_the_methods_file_are_named(tmp_path, text, said):
    with pytest.raises(methods_lib.MethodsError, match=said) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)


def test_an_unknown_field_ends_the_command_with_a_line(tmp_path):
    (tmp_path / "methods.py").write_text("TRAINED = {'a': {'optim.los': 'irm'}}")
    done = subprocess.run(
        [sys.executable, "-m", "rxrx1_jax.leaderboard", "--config=configs/demo.py",
         f"--methods={tmp_path / 'methods.py'}", f"--workdir={tmp_path / 'runs'}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "runs").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "sets optim.los: no such field; expected optim.loss" in line


def test_the_file_of_the_project():
    methods = methods_lib.load(str(ROOT / "configs" / "leaderboard.py"), demo.get_config())
    assert methods.baseline == "baseline" and not methods.trained["baseline"]
    assert set(methods.corrections["baseline"]) == corrections.METHODS.keys() - {"none"}
    for overrides in methods.trained.values():
        for field, text in overrides.items():
            if field in config_lib.POINTS and field != "data.normalisation":
                config_lib.load_all(field, text)  # refuses what is no plug-in of the project
    jobs = leaderboard.make_jobs(methods, [0, 1, 2], [0, 1])
    assert len(jobs) == len({job.path(Path()) for job in jobs})
    batch = [job for job in jobs if job.protocol == "batch" and not job.control]
    assert len(batch) == 6 * len(methods.trained)
    first = [job.trained for job in jobs[: len(methods.trained)]]
    assert first == list(methods.trained)  # every method before a second seed or fold of any


# Maps.


def test_principal_components_against_the_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 5
    found, share = embedding_map.principal_components(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum())


def test_far_apart_takes_the_corners():
    corners = np.array([[0.0, 0], [10, 0], [0, 11], [12, 13]])
    middle = np.full((5, 2), 5.0) + np.arange(5)[:, None] * 0.1
    assert set(embedding_map.far_apart(np.concatenate([middle, corners]), 4)) == {5, 6, 7, 8}
    assert len(embedding_map.far_apart(corners, 9)) == 4
