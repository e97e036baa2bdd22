"""docs/methods.md's own methods, run as they are written there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from arrays import small_evidence

from rxrx1_jax.methods.evidence import scores

pytest_plugins = ["dataset_fixture"]

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "methods.md").read_text()
BLOCKS = {
    kind: re.findall(rf"```{kind}\n(.*?)```", DOC, re.DOTALL) for kind in ("python", "console")
}


def run(arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["mean_matching", "minus_mean"])
def test_each_method_is_under_twenty_lines(name):
    code = BLOCKS["python"][0]
    (body,) = re.findall(rf"^def {name}\(.*?(?=^def |\Z)", code, re.DOTALL | re.MULTILINE)
    imports = code[: code.index("\n\n\n")]
    assert len((imports + body).split("\n")) < 20 + 2  # the blank lines around it


@pytest.mark.long
def test_the_example_runs(tiny, tmp_path):
    (tmp_path / "my_methods.py").write_text(BLOCKS["python"][0])
    lines = BLOCKS["console"][0].splitlines()
    training, correction = (shlex.split(line.removeprefix("$ ")) for line in lines)
    assert training[:3] == ["python", "-m", "rxrx1_jax.main"]
    small = [  # the tiny release in place of the synthetic screen
        f"--config.data.dir={tiny.dataset.parent.parent.parent}", "--config.data.name=rxrx1/tiny",
        "--config.data.protocol=official", "--config.optim.batch_size=8",
        "--config.optim.epochs=2", "--config.optim.warmup_epochs=1.0", "--config.model.width=8",
        "--config.eval.batch_size=8",
    ]  # fmt: skip
    run([*training[1:], *small], tmp_path)
    table = run(correction[1:], tmp_path)
    assert "| my_methods.centred " in table
    assert table.index("**unlabelled test images**") < table.index("my_methods.centred")
    stored = tmp_path / "runs/matched/corrections/my_methods.centred.parquet"
    predictions = pq.read_table(tmp_path / "runs/matched/predictions.parquet")
    assert sorted(pq.read_table(stored)["site_id"].to_pylist()) == sorted(
        predictions["site_id"].to_pylist()
    )


def test_the_grid_chooses_among_its_shares():
    names: dict = {}
    exec(BLOCKS["python"][1], names)
    evidence = small_evidence()
    test = np.flatnonzero(evidence.role == "test")
    evidence.role[test[::2]] = "val"
    tuned, right = names["tuned"], []
    for one in tuned.grid:
        as_test = evidence._replace(role=np.where(evidence.role == "val", "test", np.where(
            evidence.role == "test", "other", evidence.role)))  # fmt: skip
        predicted = scores(one, as_test).argmax(1)
        right.append(np.mean(predicted == evidence.sites["sirna_id"][evidence.role == "val"]))
    best = tuned.grid[int(np.argmax(right))]
    np.testing.assert_array_equal(scores(tuned, evidence), scores(best, evidence))


def test_every_plug_in_of_the_tables_exists():
    from rxrx1_jax import config

    rows = re.findall(r"^\| [^|]+ \| `([a-z]+\.[a-z]+)`[^|]* \| ([^|]+) \|", DOC, re.MULTILINE)
    assert {field for field, _ in rows} == config.POINTS.keys() - {"train.loggers"}  # no method
    for field, names in rows:
        found = re.findall(r"`(\w+)`", names)
        assert set(found) == set(config.FIELDS[field].valid)
