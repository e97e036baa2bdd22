"""`--config=smoke`: from nothing but the installed package to a page."""

import json

import jax
import pytest
from commands import run_command

import rxrx1_jax as rx


def test_the_smoke_run_learns_and_its_page_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = run_command("main", "--config=smoke", "--workdir=run")
    assert trained.code == 0
    size = sum(leaf.size for leaf in jax.tree.leaves(rx.load_run("run").load().params))
    assert f" {size:,} parameters" in trained.out
    assert "python -m rxrx1_jax.report" in trained.out.splitlines()[-1]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["accuracy"]["site"]["all"] > 0.5  # chance: 0.125
    outcome = run_command("report", "run", "--out=page")
    assert outcome.code == 0, outcome.err
    pictures = {path.name for path in (tmp_path / "page").iterdir()}
    assert "index.html" in pictures and any("channels" in name for name in pictures)


@pytest.mark.parametrize("name, runs", [
    ("table1", ["batch-HUVEC-0", "U2OS"]),
    ("leaderboard --methods=leaderboard --folds=0", ["raw/batch-0-0"]),
])
def test_tables_are_planned_on_images_in_memory(tmp_path, name, runs):
    data = rx.open_dataset("rxrx1_jax.data.smoke.screen()")
    assert rx.make_split(data).test.size and data[0].shape == data.image_shape
    name, *options = name.split()
    outcome = run_command(name, *options, "--config=smoke", f"--workdir={tmp_path}", "--collect")
    assert outcome.code == 1
    for run in runs:
        assert run in outcome.out + outcome.err
