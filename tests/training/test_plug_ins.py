"""Settings that name functions: how they fit together and with the data."""

import numpy as np
import pytest
from dataset_fixture import make_config

from rxrx1_jax.config import ConfigError
from rxrx1_jax.data import samplers
from rxrx1_jax.training import run_dir, train


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("optim__loss", "dann", "'domain_adversary'"),
        ("optim__loss", "arcface", "'cosine'"),
        ("data__sampler", "experiments(count=3)", "multiple of the 3"),
        ("model__head", "quadratic", "linear"),
        ("data__augmentation", "cutmix, blur", "cutmix"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_run_exists(
    tiny, tmp_path, field, value, said
):
    config = make_config(tiny.dataset, **{field: value})
    with pytest.raises((ConfigError, run_dir.RunError), match=field.replace("__", ".")) as error:
        train.train_and_evaluate(config, tmp_path / "run")
    assert said in str(error.value) and not (tmp_path / "run").exists()


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
