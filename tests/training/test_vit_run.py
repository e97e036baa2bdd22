"""A run of configs/vit.py, small, on the smoke screen: from training to corrections."""

import json

import jax
import numpy as np
import pytest
from commands import run_command

import rxrx1_jax as rx
from rxrx1_jax.model import vit

SMALL = {
    "data.name": "rxrx1_jax.data.smoke.screen()", "data.crop": 0, "model.width": 16,
    "model.name": "vit_tiny(patch=8)", "optim.batch_size": 16, "optim.epochs": 20,
    "optim.learning_rate": 2e-3, "optim.warmup_epochs": 2, "eval.batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("vit") / "run"
    fields = [f"--config.{name}={value}" for name, value in SMALL.items()]
    standard = jax.numpy_dtype_promotion("standard")  # as users have it; Optax's Adam relies on it
    with standard, pytest.MonkeyPatch.context() as patched:
        patched.setattr(vit, "DEPTH", 2)
        done = run_command("main", "--config=vit", *fields, f"--workdir={run}")
        assert done.code == 0, done.err
        yield run


def test_it_learns_with_the_optimizer_of_the_recipe(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["accuracy"]["site"]["all"] > 0.4  # chance: 0.125
    optim = json.loads((trained / "config.json").read_text())["optim"]
    assert (optim["name"], optim["weight_decay"], optim["clip_norm"]) == ("adamw", 0.05, 1.0)


def test_its_embedding_is_the_class_token(trained):
    embeddings = rx.load_run(trained).embeddings()
    assert embeddings.x.shape == (252, 3 * 16) and np.isfinite(embeddings.x).all()
    np.testing.assert_allclose(embeddings.x.std(1), 1, atol=0.2)  # after a LayerNorm


def test_corrections_of_embeddings_work_and_adabn_is_left_out_in_a_line(trained, tmp_path):
    names = ("centre_scale_plate", "tvn_plate+lda", "orientations", "adabn_experiment")
    done = run_command("correct", trained, "--methods", *names, f"--out={tmp_path}/out")
    assert done.code == 0, done.err
    rows = [name for name in names if f"| {name}" in done.out]
    assert rows == list(names[:3])
    (line,) = [line for line in done.err.splitlines() if "adabn_experiment" in line]
    assert "BatchNorm" in line and "model.name" in line
