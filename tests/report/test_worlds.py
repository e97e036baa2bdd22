"""Runs on several datasets in one table: intervals over worlds, names, and what is refused."""

import csv
import json
from pathlib import Path

import pytest
from commands import run_command
from finished_runs import all_right, edited, make_run
from scipy import stats

from rxrx1_jax.report import comparison

RIGHT = {"base": (8, 10, 9), "coral": (10, 13, 12)}  # sites of 20, in each world


def make_world_run(path: Path, k: int, right: int, **changes) -> Path:
    """A run on rxrx1/w{k}, whose data are its own."""
    run = make_run(path, all_right(right, 5), name=f"rxrx1/w{k}", **changes)
    with edited(run / "config.json") as config:
        config["dataset"]["data_fingerprint"] = f"data{k}"
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("worlds")
    changes = {"base": {}, "coral": {"optim__loss": "coral"}}
    return [make_world_run(folder / f"{name}{k}", k, sites, **changes[name])
            for name, of in RIGHT.items() for k, sites in enumerate(of)]  # fmt: skip


def test_three_worlds_make_one_table(runs, tmp_path):
    done = run_command("report", *runs, "--worlds", f"--out={tmp_path}")
    assert done.code == 0, done.err
    base, coral = csv.DictReader(open(tmp_path / "comparison.csv"))
    found = stats.ttest_rel(RIGHT["coral"], RIGHT["base"])
    low, high = (5 * x for x in found.confidence_interval())  # a site of 20 is 5 points
    gain = [float(coral[comparison.GAIN + part]) for part in ("", " low", " high")]
    assert gain == pytest.approx([40 / 3, low, high])
    assert float(coral["p (Holm)"]) == pytest.approx(found.pvalue)
    assert coral["runs"] == "rxrx1/w0:0.0 rxrx1/w1:0.0 rxrx1/w2:0.0"
    notes = json.loads((tmp_path / "comparison.json").read_text())["notes"]
    assert "over worlds" in notes[0] and not any("folds" in note for note in notes)
    html = (tmp_path / "index.html").read_text()
    assert "rxrx1/w0 1.0.0, rxrx1/w1 1.0.0, rxrx1/w2 1.0.0" in html
    experiments = (tmp_path / "experiments.svg").read_text()
    assert all(f"HUVEC-05 of rxrx1/w{k}" in experiments for k in range(3))


def test_without_the_flag_each_is_a_section(runs, tmp_path):
    assert run_command("report", *runs, f"--out={tmp_path}").code == 0
    assert len(list(tmp_path.glob("*-comparison.csv"))) == 3


@pytest.mark.parametrize(
    ("k", "results", "said"),
    [
        (3, {"classes": 33}, "33"),
        (3, {"image_size": 128}, "128 px"),
        (3, {"source": "release"}, "release"),
        (1, {}, "same data"),
    ],
)
def test_worlds_that_must_not_be_averaged(runs, tmp_path, k, results, said):
    other = make_world_run(tmp_path / "other", k, 9)
    for file in ("results.json", "config.json"):
        with edited(other / file) as content:
            content["data"]["name"] = "rxrx1/other"
            content["data"] |= results if file == "results.json" else {}
    done = run_command("report", *runs, other, "--worlds", f"--out={tmp_path / 'page'}")
    assert done.code == 1 and "--worlds" in done.last and said in done.last
    assert not (tmp_path / "page").exists()
