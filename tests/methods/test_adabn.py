"""AdaBN against NumPy and against the network in training; orientations; networks of others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_info import make_info

from rxrx1_jax.methods import adabn
from rxrx1_jax.model.resnet import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM
from rxrx1_jax.training import orientations, steps


class TwoLayers(nn.Module):
    """BatchNorm on the input, and again behind a product."""

    momentum: float = BATCH_NORM_MOMENTUM
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, batch, info):
        norm = dict(
            use_running_average=not info.train, momentum=self.momentum, epsilon=BATCH_NORM_EPSILON
        )
        x = nn.BatchNorm(**norm, name="bn1")(x)
        x = nn.Dropout(self.dropout, deterministic=not info.train)(x)
        x = nn.Dense(4, name="fc")(x)
        return nn.BatchNorm(**norm, name="bn2")(x)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, batch, info):
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(0).normal(3, 2, size=(3, 8, 5, 5, 2)).astype(np.float32)
    values *= np.array([1.0, 2.0, 0.5], np.float32)[:, None, None, None, None]  # batches differ
    return values


def adapt(model, images, count=None):
    """(variables, statistics) adapted to the first `count` batches, or all."""
    info = make_info(4)
    spec = steps.StepSpec(model, None, None, info.vocabulary, 1)
    variables = model.init(jax.random.key(0), jnp.asarray(images[0]), {}, info)
    batches = [{"image": jnp.asarray(batch)} for batch in images[:count]]
    return variables, adabn.adapted_statistics(
        spec, variables["params"], variables.get("batch_stats", {}), batches
    )


@pytest.mark.parametrize("model", [TwoLayers(), TwoLayers(0.997)], ids=["ours", "another"])
def test_first_layer_has_the_moments_of_all_images(model, images):
    _, found = adapt(model, images)
    pixels = images.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(found["bn1"]["mean"], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["bn1"]["var"], pixels.var(0), rtol=1e-5)


def test_deeper_layers_have_those_of_normalised_batches(images):
    variables, found = adapt(TwoLayers(), images)
    fc = variables["params"]["fc"]
    kernel, bias = (np.asarray(fc[k], np.float64) for k in ("kernel", "bias"))
    means, seconds = [], []
    for batch in images.astype(np.float64):
        flat = batch.reshape(-1, 2)
        normal = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + BATCH_NORM_EPSILON)
        product = normal @ kernel + bias
        means.append(product.mean(0))
        seconds.append(product.var(0) + product.mean(0) ** 2)
    np.testing.assert_allclose(found["bn2"]["mean"], np.mean(means, 0), atol=1e-5)
    expected = np.mean(seconds, 0) - np.mean(means, 0) ** 2
    np.testing.assert_allclose(found["bn2"]["var"], expected, rtol=1e-4)


def test_dropout_is_off(images):
    found, expected = (adapt(TwoLayers(dropout=rate), images)[1] for rate in (0.9, 0.0))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_adapted_to_one_batch_the_network_treats_it_as_in_training(images):
    model = TwoLayers()
    variables, statistics = adapt(model, images, 1)
    adapted = {"params": variables["params"], "batch_stats": statistics}
    evaluated = model.apply(adapted, images[0], {}, make_info(4))
    info = make_info(4, train=True)
    trained, _ = model.apply(variables, images[0], {}, info, mutable=["batch_stats"])
    np.testing.assert_allclose(evaluated, trained, atol=1e-5)


def test_without_images_or_batch_norm_there_is_nothing_to_adapt(images):
    with pytest.raises(ValueError, match="BatchNorm.*model.name"):
        adapt(Plain(), images)
    with pytest.raises(ValueError, match="no images"):
        adapt(TwoLayers(), images, 0)


@pytest.mark.parametrize(
    ("rows", "multiple", "size", "count"),
    [(16, 16, 16, 1), (78, 16, 80, 1), (256, 16, 256, 1), (300, 16, 160, 2), (5, 24, 24, 1)],
)
def test_learning_batches_hold_all_rows_in_a_random_order(rows, multiple, size, count):
    found, of_one = adabn.learning_batches(np.arange(rows) + 7, multiple)
    assert (of_one, len(found)) == (size, size * count)
    assert sorted(set(found.tolist())) == list(range(7, rows + 7)) != found[:rows].tolist()
    assert np.bincount(found).max() <= -(-size * count // rows)


def test_the_eight_orientations_are_those_of_the_square():
    images = np.random.default_rng(0).random((2, 5, 5, 3))
    found = [np.asarray(orientations.turn(jnp.asarray(images), k)) for k in range(8)]
    flips = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    expected = [turned for x in flips for turned in (x, x.swapaxes(1, 2))]
    for image in expected:
        assert sum(np.array_equal(image.astype(np.float32), one) for one in found) == 1
