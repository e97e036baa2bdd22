"""`--config=smoke`: from nothing but the installed package to a page."""

import json

import jax
from commands import run_command

from rxrx1_jax import load_run


def test_the_smoke_run_learns_and_its_page_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = run_command("main", "--config=smoke", "--workdir=run")
    assert trained.code == 0
    size = sum(leaf.size for leaf in jax.tree.leaves(load_run("run").load().params))
    assert f" {size:,} parameters" in trained.out
    assert "python -m rxrx1_jax.report" in trained.out.splitlines()[-1]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["accuracy"]["site"]["all"] > 0.5  # chance: 0.125
    outcome = run_command("report", "run", "--out=page")
    assert outcome.code == 0, outcome.err
    pictures = {path.name for path in (tmp_path / "page").iterdir()}
    assert "index.html" in pictures and any("channels" in name for name in pictures)
