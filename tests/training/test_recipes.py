"""Every recipe of configs/recipes.py: settings, a training on the smoke screen, errors."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run_command

from configs.recipes import RECIPES
from rxrx1_jax import config
from rxrx1_jax.data import smoke
from rxrx1_jax.methods.adabn import learning_batches
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.training.run import Run

ROOT = Path(__file__).parents[2]
# The smoke screen has four experiments to train on, and batches of 16.
FEWER = {
    name: ",data.sampler=experiments(count=4, across=True)" for name in ("wilds_coral", "wilds_irm")
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that others begin from or take labels of."""
    return trained("wilds_erm", tmp_path_factory.mktemp("plain") / "run", "")


def trained(name, workdir, further):
    small = ["model.name=small_network.network", "train.max_steps=3", "train.eval_every=0"]
    arguments = ",".join([f"recipes:{name}", "base=smoke", *small]) + further
    done = run_command("main", f"--config={arguments}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    return workdir


def asked_for(name, plain):
    return {
        "pseudo_labels": f",pseudo_labels={plain}/predictions.parquet",
        "cell_type_fine_tuning": f",cell_type=RPE,model.init={plain}",
    }.get(name, FEWER.get(name, ""))


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_on_the_smoke_screen(name, plain, tmp_path):
    workdir = trained(name, tmp_path / "run", asked_for(name, plain))
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 3 and np.isfinite(results["loss"])
    saved = config.flat(json.loads((workdir / "config.json").read_text()))
    method = RECIPES[name].method | ({"data.sampler": FEWER[name][14:]} if name in FEWER else {})
    assert {field: saved[field] for field in method} == method
    base = config.flat(config.read("smoke"))
    assert all(saved[field] == base[field] for field in RECIPES[name].training.keys() - method)


def test_treatments_are_learnt_after_controls(tmp_path):
    first = trained("wilds_erm", tmp_path / "controls", ",data.control_classes=alone")
    then = trained("wilds_erm", tmp_path / "run", f",model.init={first}")
    classes = [len(Run.open(path).vocabulary.classes) for path in (first, then)]
    assert classes == [13, 8]  # the head is another one


@pytest.mark.parametrize("name", RECIPES)
def test_as_published_its_settings_are_possible(name):
    asks = {"data.pseudo_labels": "p.parquet", "data.cell_type": "RPE", "model.init": "run"}
    given = "".join(f",{field}={asks[field]}" for field in RECIPES[name].asks)
    found = config.read(f"recipes:{name},fold=0{given}")
    config.check(found)
    flat, recipe = config.flat(found), RECIPES[name]
    expected = config.flat(config.read(recipe.base)) | recipe.method | recipe.training
    assert {field: flat[field] for field in expected if field not in recipe.asks} == {
        field: value for field, value in expected.items() if field not in recipe.asks
    }


@pytest.mark.parametrize(
    "argument, words",
    [
        ("", ["ben", "recipes:ben"]), ("bne", ["'bne'", "ben"]),
        ("ben,base=dem", ["dem", "demo"]), ("ben,bas=demo", ["data.bas"]),
        ("pseudo_labels", ["data.pseudo_labels"]),
        ("pseudo_labels,pseudo_labels=p.parquet,pseudo_share=much", ["data.pseudo_share"]),
        ("cell_type_fine_tuning,model.init=run", ["data.cell_type"]),
        ("cell_type_fine_tuning,cell_type=RPE", ["model.init"]),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_in_one_line(argument, words, tmp_path):
    done = run_command("main", f"--config=recipes:{argument}", f"--workdir={tmp_path}/run")
    assert done.code != 0 and done.last.startswith("error: ")
    assert all(word in done.last for word in words), done.last
    assert not (tmp_path / "run").exists()


def test_a_whole_plate_at_test_is_one_batch(plain, tmp_path):
    """BEN's evaluation against NumPy: BatchNorm sees all wells of the plate at once."""
    workdir = trained("ben", tmp_path / "run", "")
    done = run_command("correct", workdir, "--methods", "adabn_plate")
    assert done.code == 0, done.err
    run = Run.open(workdir)
    table = pq.read_table(workdir / "corrections" / "adabn_plate.parquet")
    columns = (table[name].to_pylist() for name in ("site_id", "probability"))
    found = dict(zip(*columns, strict=True))
    params, images = jax.tree.map(np.asarray, run.load().params), smoke.screen()
    seen = 0
    for experiment in np.unique(images.sites["experiment"]):  # of one plate each
        rows = np.flatnonzero(images.sites["experiment"] == experiment)
        pixels = np.stack([images[row] for row in rows]).astype(np.float64)
        mean, std = (f(pixels, axis=(2, 3), keepdims=True) for f in (np.mean, np.std))
        x = ((pixels - mean) / std).transpose(0, 2, 3, 1)
        # To fill the batch up to a multiple of 16, some rows come twice.
        batch, size = learning_batches(np.arange(len(rows)), 16)
        assert size == len(batch) < len(rows) + 16
        for name in ("bn1", "bn2"):
            own, over = params[name], tuple(range(x.ndim - 1))
            mean, var = x[batch].mean(over), x[batch].var(over)
            x = (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]
            x = np.maximum(x, 0).mean((1, 2)) if name == "bn1" else x
        logits = x @ params["fc"]["kernel"] + params["fc"]["bias"]
        probability = np.exp(logits).max(1) / np.exp(logits).sum(1)
        for name, expected in zip(images.sites["site_id"][rows], probability, strict=True):
            if name in found:
                np.testing.assert_allclose(found[name], expected, rtol=2e-3)
                seen += 1
    assert seen == len(found) > 0


def test_the_page_and_the_header_list_every_recipe():
    page = (ROOT / "docs/recipes.md").read_text()
    header = importlib.import_module("configs.recipes").__doc__
    for text in (page, header):
        rows = re.findall(r"^\| `?(\w+)`? \| .+ \|$", text, re.MULTILINE)
        assert set(rows) - {"name", "recipe"} == set(RECIPES)
    for name in re.findall(r"`(adabn_\w+)`", page):
        assert name in METHODS or name in RECIPES
