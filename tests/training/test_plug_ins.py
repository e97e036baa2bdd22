"""Settings that name functions: what is found, what is refused, and how they fit together."""

import importlib
import sys

import jax
import numpy as np
import pytest
from test_train import make_config

from rxrx1_jax import plug_ins
from rxrx1_jax.data import samplers
from rxrx1_jax.training import run_dir, train

pytest_plugins = ["dataset_fixture"]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Makes `own_plug_ins` importable; returns the function that writes it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_plug_ins", raising=False)
    return (tmp_path / "own_plug_ins.py").write_text


def test_every_listed_factory_loads_with_its_defaults():
    for field, (module, listed) in plug_ins.POINTS.items():
        if field != "data.normalisation":  # ours are names there, no factories
            for name in getattr(importlib.import_module(module), listed):
                assert plug_ins.load(field, name)


def test_arguments_reach_the_factory(own_module):
    own_module("def made(*args, **kwargs):\n    return args, kwargs\n")
    text = "own_plug_ins.made(1, [2.5, 'a'], b=-3, c=None)"
    assert plug_ins.load("optim.loss", text) == ((1, [2.5, "a"]), {"b": -3, "c": None})
    found = plug_ins.load_all("data.augmentation", "own_plug_ins.made, own_plug_ins.made(1)")
    assert found == [((), {}), ((1,), {})]
    assert plug_ins.load_all("data.augmentation", "") == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("corall", "expected one of cross_entropy, arcface, coral"),
        ("coral(wait=1)", "argument 'wait'; expected coral(weight: float = 1.0)"),
        ("coral(weight=-1)", "weight is -1"),
        ("coral(weight=open('x'))", "expected a name or name(argument=value, ...)"),
        ("coral(", "expected a name or name(argument=value, ...)"),
        ("coral, irm", "expected one name, found 2"),
        ("", "expected one name, found 0"),
        ("no_such_module.loss", "No module named 'no_such_module'"),
        ("math.no_such_loss", "no_such_loss"),
        ("(lambda: 1)()", "expected a name or name(argument=value, ...)"),
    ],
)
def test_what_is_no_plug_in_is_refused_by_a_line(text, said):
    with pytest.raises(plug_ins.PlugInError) as error:
        plug_ins.load("optim.loss", text)
    message = str(error.value)
    assert message.startswith("optim.loss=") and said in message and "\n" not in message


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("optim__loss", "dann", "set model.head to 'domain_adversary'"),
        ("optim__loss", "arcface", "set model.head to 'cosine'"),
        ("data__sampler", "experiments(count=3)", "expected a multiple of the 3 experiments"),
        ("model__head", "quadratic", "expected one of linear"),
        ("data__augmentation", "cutmix, blur", "expected one of cutmix"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_run_exists(
    tiny, tmp_path, field, value, said
):
    config = make_config(tiny.dataset, **{field: value})
    with pytest.raises(run_dir.RunError, match=field.replace("__", ".")) as error:
        train.train_and_evaluate(config, tmp_path / "run")
    assert said in str(error.value) and not (tmp_path / "run").exists()


def test_losses_of_a_whole_batch_are_refused_under_pmap(tiny):
    config = make_config(tiny.dataset, optim__loss="coral", train__parallelism="pmap")
    if jax.device_count() == 1:
        run_dir.check(config)
    else:
        with pytest.raises(run_dir.RunError, match="parallelism=jit"):
            run_dir.check(config)


def test_a_run_with_plug_ins_everywhere(tiny, tmp_path):
    config = make_config(
        tiny.dataset, data__sampler="experiments(count=1)", data__augmentation="cutmix",
        model__head="domain_adversary(hidden=4)", optim__loss="dann(weight=0.1)",
        data__normalisation="plate_control_robust",
    )  # fmt: skip
    results = train.train_and_evaluate(config, tmp_path / "run")
    assert results["step"] == results["total_steps"] and np.isfinite(results["loss"])


def test_batches_follow_the_sampler_and_shuffled_labels_keep_each_experiments_counts(tiny):
    task = train.prepare(make_config(tiny.dataset))
    sites, train_rows = task.records.sites, task.split.train
    labels = {}
    for shuffled in (False, True):
        config = make_config(tiny.dataset, data__shuffled_labels=shuffled)
        seen = {}
        for batch in train.train_batches(config, task, 0):
            seen |= dict(zip(*(np.asarray(batch[x]).tolist() for x in ("site_index", "label")),
                             strict=True))  # fmt: skip
        labels[shuffled] = np.array([seen[row] for row in train_rows.tolist()])
    true = np.searchsorted(task.split.classes, sites["sirna_id"][train_rows])
    np.testing.assert_array_equal(labels[False], true)
    assert (labels[True] != true).any()
    for experiment in np.unique(sites["experiment"][train_rows]):
        here = sites["experiment"][train_rows] == experiment
        np.testing.assert_array_equal(np.sort(labels[True][here]), np.sort(true[here]))

    config = make_config(tiny.dataset, data__sampler="experiments(count=1)", data__augment=False)
    order = samplers.experiments(count=1)(sites[train_rows], config.optim.batch_size, 0)
    for step, batch in enumerate(train.train_batches(config, task, 0)):
        np.testing.assert_array_equal(batch["site_index"], train_rows[order(step)[0]])
        assert len(set(np.asarray(batch["experiment"]).tolist())) == 1
