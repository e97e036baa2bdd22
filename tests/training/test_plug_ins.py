"""Settings that name functions: how they fit together and with the data."""

import numpy as np
import pytest
from screens import tiny_config, tiny_images

import rxrx1_jax as rx
from rxrx1_jax.config import ConfigError
from rxrx1_jax.data import samplers
from rxrx1_jax.data.images import METADATA, DatasetError, InMemory
from rxrx1_jax.training import run_dir, setup, train


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("optim__loss", "dann", "'domain_adversary'"),
        ("optim__loss", "arcface", "'cosine'"),
        ("data__sampler", "experiments(count=3)", "multiple of the 3"),
        ("model__head", "quadratic", "linear"), ("model__width", 3, "4 or more"),
        ("data__augmentation", "cutmix, blur", "cutmix"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_the_run_exists(
    tmp_path, field, value, said
):
    config = tiny_config(**{field: value})
    with pytest.raises((ConfigError, run_dir.RunError), match=field.replace("__", ".")) as error:
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    assert said in str(error.value) and not (tmp_path / "run").exists()


def few(rows):
    """A sampler of batches that are too small."""
    return lambda *_: samplers.Order(1.0, lambda step: (np.arange(rows),) * 3)


def flat():
    """A normalisation without channels."""
    return lambda images, rows, training: (np.zeros(len(rows)), np.ones(len(rows)))


def lacking():
    """A plug-in that asks for a key that is not there."""
    return lambda *_: {}["nothing"]


def brighter():
    """An augmentation that follows the progress of the training."""
    return lambda keys, batch, info: {**batch, "image": batch["image"] + info.progress}


@pytest.mark.parametrize(
    "field, value",
    [
        ("data__sampler", "few(rows=3)"), ("data__normalisation", "flat"),
        *((f"{section}__{name}", "lacking") for section, name in (
            ("data", "sampler"), ("data", "normalisation"), ("data", "augmentation"),
            ("model", "name"), ("model", "head"))),
    ],
)  # fmt: skip
def test_plug_ins_that_give_another_form_are_refused_before_the_run_exists(
    tmp_path, field, value
):
    config = tiny_config(**{field: f"{__name__}.{value}"})
    with pytest.raises((run_dir.RunError, DatasetError), match=field.replace("__", ".")) as error:
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    assert not (tmp_path / "run").exists()
    assert value != "lacking" or "KeyError: 'nothing'" in str(error.value)


def test_a_batch_made_again_has_the_progress_of_its_step():
    plain, bright = (
        setup.prepare(tiny_config(data__augmentation=x), tiny_images())
        for x in ("", f"{__name__}.brighter")
    )
    difference = bright.train_batch(6)["image"] - plain.train_batch(6)["image"]
    np.testing.assert_allclose(difference, 6 / plain.spec.total_steps, atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"data__sampler": "experiments(count=1)", "data__augmentation": "cutmix",
         "model__head": "domain_adversary(hidden=4, ramp=10.0)",
         "optim__loss": "dann(weight=0.1)", "data__normalisation": "plate_control_robust"},
        {"data__sampler": "experiments(count=2, across=True)", "data__augmentation": "mixup",
         "model__head": "linear_and_cosine(neck='batch')", "optim__loss": "arcface(beside=0.2)"},
    ],
)  # fmt: skip
def test_a_run_with_plug_ins_everywhere(tmp_path, parts):
    images = tiny_images()
    results = train.train_and_evaluate(tiny_config(**parts), tmp_path / "run", images)
    assert results["step"] == results["total_steps"] and np.isfinite(results["loss"])
    again = rx.load_run(tmp_path / "run").predict(images)  # all variables are in the checkpoint
    assert rx.score(again, "test")["site"] == results["accuracy"]["site"]


def test_batches_follow_the_sampler_and_shuffled_labels_keep_each_experiments_counts():
    images = tiny_images()
    ready = setup.prepare(tiny_config(), images)
    sites, rows, stored = images.sites, ready.split.train, ready.train_rows
    context = np.setdiff1d(stored, rows)  # control wells of the training experiments
    assert set(sites["well_type"][context]) == {"positive_control", "negative_control"}
    assert set(sites["experiment"][context]) <= set(sites["experiment"][rows])
    labels = {}
    for shuffled in (False, True):
        changed = setup.prepare(tiny_config(data__shuffled_labels=shuffled), images)
        label = np.asarray(changed.train_store().columns["label"])
        assert label[-1] == label[0]  # of the blank site
        assert (label[:-1][np.isin(stored, context)] == -1).all()
        labels[shuffled] = label[:-1][np.isin(stored, rows)]
        store, _ = changed.evaluation_draws(rows)  # where they are what they are
        np.testing.assert_array_equal(store.columns["label"][:-1], labels[False])
    true = np.searchsorted(ready.vocabulary.classes, sites["sirna_id"][rows])
    np.testing.assert_array_equal(labels[False], true)
    assert (labels[True] != true).any()
    for experiment in np.unique(sites["experiment"][rows]):
        here = sites["experiment"][rows] == experiment
        np.testing.assert_array_equal(np.sort(labels[True][here]), np.sort(true[here]))

    config = tiny_config(data__sampler="experiments(count=1)", data__augment=False)
    ready = setup.prepare(config, images)
    order = samplers.experiments(count=1)(sites, ready.split, config.optim.batch_size, 0)
    for step, draw in enumerate(ready.train_draws(0)):
        np.testing.assert_array_equal(stored[draw.chosen[0, :, 0]], order(step)[0])
        assert len(set(sites["experiment"][stored[draw.chosen[0, :, 0]]].tolist())) == 1


def test_context_rows_are_the_controls_they_claim_to_be():
    """A sampler may draw controls of training experiments; any other row is refused."""
    images = tiny_images()
    ready = setup.prepare(tiny_config(data__augment=False), images)
    context = np.setdiff1d(ready.train_rows, ready.split.train)
    rows = np.concatenate([ready.split.train[:4], context[-4:]])
    mask = np.arange(8) < 4

    def batches(rows):
        order = samplers.Order(1.0, lambda step: (rows, np.zeros(8, np.int32), mask))
        return setup.Setup(ready.config, ready.stream, ready.spec, ready.devices, order)

    batch = batches(rows).train_batch(0)
    np.testing.assert_array_equal(batch["site_index"], rows)
    for i, row in enumerate(rows):
        mean, std = (images.sites[x][row][:, None, None] for x in ("control_mean", "control_std"))
        expected = (images[row] - mean) / np.maximum(std, 12**-0.5)
        np.testing.assert_allclose(batch["image"][i], expected.transpose(1, 2, 0), atol=1e-4)
    with pytest.raises(ValueError, match=str(ready.split.test[0])):
        batches(np.append(rows[1:], ready.split.test[0])).train_batch(0)


def test_images_that_are_not_square_are_refused_in_one_line(tmp_path):
    square = tiny_images()
    sites = {name: square.sites[name] for name in METADATA}
    wide = InMemory(np.repeat(square.planes, 2, axis=3), sites)
    with pytest.raises(run_dir.RunError, match="data.augment.*16x32"):
        train.train_and_evaluate(tiny_config(), tmp_path / "run", wide)
    assert not (tmp_path / "run").exists()
    assert setup.prepare(tiny_config(data__crop=16), wide).abstract_state.step.shape == ()
