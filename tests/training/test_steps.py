"""steps.py against closed forms; test_scaling.py has the devices."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_info import make_info
from ml_collections import ConfigDict

from benchmarks.given import OnDevices
from rxrx1_jax.config import FIELDS
from rxrx1_jax.data.stream import Store
from rxrx1_jax.model import resnet
from rxrx1_jax.training import optimizers, steps


def optim(**changes):
    fields = dict(
        name="sgd", learning_rate=0.2, momentum=0.9, nesterov=False, weight_decay=0.01,
        schedule="cosine", clip_norm=0.0, warmup_epochs=2, epochs=10,
    )  # fmt: skip
    return ConfigDict(fields | changes)


class Linear(nn.Module):
    """No BatchNorm: rows do not depend on each other. Counts its calls in batch_stats."""

    @nn.compact
    def __call__(self, images, batch, info):
        calls = self.variable("batch_stats", "calls", lambda: jnp.zeros(()))
        if info.train:
            calls.value += 1
        return nn.Dense(5, name="fc")(images.reshape(images.shape[0], -1))


class Noisy(nn.Module):
    """BatchNorm and dropout."""

    @nn.compact
    def __call__(self, images, batch, info):
        x = nn.BatchNorm(not info.train)(images.reshape(images.shape[0], -1))
        x = nn.Dropout(0.5, deterministic=not info.train)(x)
        return nn.Dense(5)(x)


SHAPE = (16, 16, 6)


def small_resnet(bn_axis_name=None):
    """Stem, pooling and one residual block: compiles in seconds, and has BatchNorm."""
    return resnet.ResNet((1,), resnet.BasicBlock, width=8, bn_axis_name=bn_axis_name)


def make_batch(rows=16, classes=5):
    images, labels = jax.random.split(jax.random.key(7))
    return {
        "image": jax.random.normal(images, (rows, *SHAPE)),
        "label": jax.random.randint(labels, (rows,), 0, classes),
        "mask": jnp.ones(rows, bool),
    }


def make_spec(model, total=10, **options):
    tx, schedule = optimizers.create_optimizer(optim(), total)
    return steps.StepSpec(model, tx, schedule, make_info(5).vocabulary, total, **options)


def bound(spec):
    """(state, train step, evaluation step) with everything but (state, batch, axis_name) bound."""
    state = steps.create_state(spec, jax.random.key(0), SHAPE)
    return state, partial(steps.train_step, spec), partial(steps.eval_step, spec)


def prepare(model, **options):
    return bound(make_spec(model, **options))


def largest_difference(tree, other):
    def difference(a, b):
        return np.abs(np.asarray(a) - np.asarray(b)).max()

    return max(jax.tree.leaves(jax.tree.map(difference, tree, other)))


def test_metrics_are_those_of_a_plain_computation():
    model = Linear()
    state, train, _ = prepare(model)
    batch = make_batch()
    logits = np.asarray(batch["image"]).reshape(16, -1) @ state.params["fc"]["kernel"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probs = shifted / shifted.sum(1, keepdims=True)
    labels = np.asarray(batch["label"])
    residual = (probs - np.eye(5)[labels]) / 16
    kernel = np.asarray(batch["image"]).reshape(16, -1).T @ residual
    norm = np.sqrt((kernel**2).sum() + (residual.sum(0) ** 2).sum())
    _, metrics = jax.jit(train)(state, batch)
    assert metrics.dtype == np.float32
    expected = {
        "loss": -np.log(probs[np.arange(16), labels]).mean(),
        "accuracy": (logits.argmax(1) == labels).mean(),
        "gradient_norm": norm,
        "learning_rate": 0.2 / 2,  # the first of two warm-up steps
    }
    assert steps.METRICS == tuple(expected)
    np.testing.assert_allclose(metrics, list(expected.values()), rtol=1e-5)


def test_masked_rows_count_nothing():
    state, train, evaluate = prepare(Linear())
    batch = make_batch(rows=12)
    padded = {
        "image": jnp.concatenate([batch["image"], jnp.full((4, *SHAPE), 1e3)]),
        "label": jnp.concatenate([batch["label"], jnp.full(4, -1)]),
        "mask": jnp.arange(16) < 12,
    }
    expected, expected_metrics = jax.jit(train)(state, batch)
    found, metrics = jax.jit(train)(state, padded)
    assert largest_difference(found.params, expected.params) < 1e-6
    assert largest_difference(metrics, expected_metrics) < 1e-6
    loss = evaluate(state, padded)["loss"]
    np.testing.assert_array_equal(loss[12:], 0)
    np.testing.assert_allclose(loss[:12], evaluate(state, batch)["loss"], rtol=1e-6)


def test_a_batch_without_any_row_changes_nothing_to_nan():
    state, train, _ = prepare(Linear())
    found, metrics = jax.jit(train)(state, make_batch() | {"mask": jnp.zeros(16, bool)})
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, metrics)))


@pytest.mark.parametrize("cpu", [True, False], ids=["unrolled", "scan"])
def test_accumulated_gradient_is_that_of_the_whole_batch(monkeypatch, cpu):
    batch = make_batch() | {"mask": jnp.arange(16) != 3}  # micro-batches of unequal counts
    spec = make_spec(Linear(), label_smoothing=0.1)
    state, train, _ = bound(spec)
    expected, expected_metrics = jax.jit(train)(state, batch)
    monkeypatch.setattr(steps, "on_cpu", lambda: cpu)
    step = partial(steps.train_step, replace(spec, accumulation=4))
    assert ("scan" in str(jax.make_jaxpr(step)(state, batch))) != cpu
    assert "scan" not in str(jax.make_jaxpr(train)(state, batch))  # no loop of one pass either
    found, metrics = jax.jit(step)(state, batch)
    assert largest_difference(found.params, expected.params) < 1e-6
    assert largest_difference(metrics, expected_metrics) < 2e-6
    assert int(found.step) == 1 and float(found.batch_stats["calls"]) == 4
    with pytest.raises(ValueError, match="accumulation is 3.*16 rows"):
        steps.train_step(replace(spec, accumulation=3), state, batch)


def test_dropout_is_a_function_of_seed_and_step():
    spec, batch = make_spec(Noisy()), make_batch()
    state = bound(spec)[0]
    losses = []
    for seed, numbers in ((0, (0, 0, 1)), (1, (0,))):
        train = jax.jit(partial(steps.train_step, replace(spec, seed=seed)))
        for step in numbers:
            losses.append(float(train(state.replace(step=jnp.int32(step)), batch)[1][0]))
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_scan_and_unrolled_parts_give_the_same_numbers(monkeypatch):
    """Each part with dropout and BatchNorm statistics of its own, the running values in turn."""
    spec = make_spec(Noisy(), accumulation=4, ema_decay=0.5)
    state, train, _ = bound(spec)
    unrolled = jax.jit(train)(state, make_batch())
    monkeypatch.setattr(steps, "on_cpu", lambda: False)
    scanned = jax.jit(partial(steps.train_step, spec))(state, make_batch())
    assert largest_difference(scanned, unrolled) < 1e-6


def test_moving_average_of_parameters_and_its_use_in_evaluation():
    state, train, evaluate = prepare(Linear(), ema_decay=0.7)
    history = [state.params]
    step, batch = jax.jit(train), make_batch()
    for _ in range(3):
        state, _ = step(state, batch)
        history.append(state.params)
    expected = jax.tree.map(lambda a, b, c, d: 0.343 * a + 0.3 * (0.49 * b + 0.7 * c + d), *history)
    assert largest_difference(state.ema_params, expected) < 1e-6
    assert largest_difference(state.params, expected) > 1e-3
    plain = state.replace(params=state.ema_params, ema_params=None, ema_batch_stats=None)
    of_average = evaluate(plain, batch)
    np.testing.assert_array_equal(evaluate(state, batch)["log_probs"], of_average["log_probs"])


def test_the_average_has_batch_norm_statistics_of_its_own():
    state, train, evaluate = prepare(small_resnet(), ema_decay=0.5)
    start = state.batch_stats
    state, _ = jax.jit(train)(state, make_batch())
    expected = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, start, state.batch_stats)
    assert largest_difference(state.ema_batch_stats, expected) < 1e-6
    assert largest_difference(state.batch_stats, start) > 1e-3
    plain = state.replace(
        params=state.ema_params, batch_stats=state.ema_batch_stats,
        ema_params=None, ema_batch_stats=None,
    )  # fmt: skip
    found = evaluate(state, make_batch())["log_probs"]
    np.testing.assert_array_equal(found, evaluate(plain, make_batch())["log_probs"])


@pytest.mark.devices
def test_pmap_without_bn_axis_normalises_per_device():
    batch = make_batch(32)
    state, train, _ = prepare(small_resnet(), label_smoothing=0.1)
    step = jax.jit(train)
    whole = float(step(state, batch)[1][0])
    parts = [
        step(state, {name: x[4 * d : 4 * d + 4] for name, x in batch.items()}) for d in range(8)
    ]
    expected_stats = jax.tree.map(
        lambda *x: np.mean(x, axis=0), *(part.batch_stats for part, _ in parts)
    )
    expected_loss = np.mean([metrics[0] for _, metrics in parts])
    # SGD's first update is linear in the gradient, so its mean is the update of the mean gradient.
    expected_params = jax.tree.map(lambda *x: np.mean(x, axis=0), *(p.params for p, _ in parts))

    wrapped = OnDevices("pmap", train.args[0])
    found, metrics = wrapped.train_step(wrapped.put(state), batch)
    np.testing.assert_allclose(metrics[0], expected_loss, rtol=1e-6)
    assert largest_difference(found.batch_stats, expected_stats) < 1.5e-6
    assert largest_difference(found.params, expected_params) < 1.5e-6
    assert abs(float(metrics[0]) - whole) > 1e-3  # it is another model


@pytest.mark.parametrize("parallelism", FIELDS["train.parallelism"].valid)
def test_the_state_is_donated(parallelism):
    state, train, evaluate = prepare(Linear(), ema_decay=0.9)
    wrapped = OnDevices(parallelism, train.args[0])
    state, draw = wrapped.put(state), wrapped.draw(make_batch())
    new, _ = wrapped.train(state, Store({}, None), draw)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema_params)))
    wrapped.train(new, Store({}, None), draw)  # the draw is not
