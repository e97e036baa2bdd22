"""docs/extend.md's own parts, run as they are written there."""

import json
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from dataset_fixture import make_config
from screens import tiny_config

from rxrx1_jax.config import change
from rxrx1_jax.training import run_dir, train
from rxrx1_jax.training.run import Run

DOC = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
WIDTH = 8


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    path = tmp_path / "my_parts.py"
    path.write_text("\n\n".join(EXAMPLES))
    return path


def test_all_of_them_in_one_run(tmp_path, my_parts):
    (command,) = re.findall(r"```console\n\$ (.*?)\n```", DOC)
    settings = dict(
        word.removeprefix("--config.").split("=", 1)
        for word in shlex.split(command) if word.startswith("--config.")
    )  # fmt: skip
    assert {f"`{field}`" for field in settings} == set(re.findall(r"^\| (`\w+\.\w+`)", DOC, re.M))
    config = tiny_config(model__width=WIDTH, data__protocol="batch")
    change(config, settings)
    results = train.train_and_evaluate(config, tmp_path / "run")
    assert results["step"] == results["total_steps"] and np.isfinite(results["loss"])
    newest = json.loads((tmp_path / "run" / "newest.json").read_text())
    assert (newest["step"], newest["test/loss"]) == (results["step"], results["loss"])
    run = Run.open(tmp_path / "run")
    state, classes = run.load(), run.vocabulary.classes
    assert set(state.params) >= {"LayerNorm_0", "fc"} and not state.batch_stats
    assert state.params["fc"]["kernel"].shape == (WIDTH, len(classes))
    assert run.embeddings().x.shape[1] == WIDTH


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_is_about_ten_lines(example):
    assert len([line for line in example.splitlines() if line.strip()]) <= 16


@pytest.mark.parametrize(
    "changed, by, said",
    [
        ("self.spec.head(self, x.mean(1), batch, info)", "x.mean(1)", "logits"),
        ("self.spec.head(", "self.spec.heads(", "heads"),
        ("lambda spec:", "lambda:", "positional argument"),
    ],
)
def test_a_network_that_does_not_fit_is_a_line_before_the_run(
    tiny, tmp_path, my_parts, changed, by, said
):
    assert my_parts.read_text().count(changed) == 1
    my_parts.write_text(my_parts.read_text().replace(changed, by))
    config = make_config(tiny.dataset, model__name="my_parts.patches")
    with pytest.raises(run_dir.RunError, match=f"model.name='my_parts.patches'.*{said}"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_sows_no_embedding_cannot_be_embedded_and_says_so(tiny, tmp_path, my_parts):
    text, count = re.subn(r" +self\.sow.*\n", "", my_parts.read_text())
    my_parts.write_text(text)
    config = make_config(tiny.dataset, model__name="my_parts.patches", optim__epochs=2)
    train.train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(ValueError, match="model.name.*embedding"):
        Run.open(tmp_path / "run").embeddings()
    assert count == 1
