"""heads.py inside a small parent module, against NumPy and finite differences."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.model import heads, losses

ROWS, FEATURES, CLASSES, CELL_TYPES, EXPERIMENTS = 6, 4, 5, 4, 46
VOCABULARY = Vocabulary(tuple("abcd"), tuple(map(str, range(EXPERIMENTS))), np.arange(CLASSES))
INFO = Info(VOCABULARY)
BATCH = {
    "cell_type": np.int32([0, 1, 0, 2, 3, 1]),
    "experiment": np.int32([2, 10, 3, 30, 45, 11]),
    "label": np.int32([0, 1, 2, 3, 4, 0]),
    "mask": np.ones(ROWS, bool),
}


class Parent(nn.Module):
    """A layer below the head, as every network has one."""

    head: heads.Head
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x, batch, info=INFO):
        features = nn.Dense(FEATURES, dtype=self.dtype, name="below")(x.astype(self.dtype))
        self.sow("intermediates", "embedding", features)
        return self.head(self, features, batch, info)


def inputs(seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(ROWS, 3)).astype(dtype)


def start(head):
    """(module, params at the start)"""
    module = Parent(head)
    return module, module.init(jax.random.key(0), inputs(), BATCH)["params"]


def drawn(params, seed=1):
    """Other values for every parameter."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def apply(module, params, batch=BATCH, x=None):
    """(logits, embedding, all that was sown)"""
    x = inputs() if x is None else x
    logits, kept = module.apply({"params": params}, x, batch, mutable=["intermediates"])
    sown = {name: value[0] for name, value in kept["intermediates"].items() if name != "fc"}
    return np.asarray(logits), np.asarray(sown["embedding"]), sown


@pytest.mark.parametrize("name", FIELDS["model.head"].valid)
def test_every_head_gives_float32_logits_of_its_classes(name):
    module, params = start(getattr(heads, name)())
    assert apply(module, params)[0].shape == (ROWS, CLASSES)
    half = Parent(getattr(heads, name)(), dtype=jnp.dtype(jnp.bfloat16))
    logits = half.apply({"params": params}, inputs(), BATCH)
    assert logits.dtype == np.float32
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    with jax.enable_x64(True):
        wide = Parent(getattr(heads, name)(), dtype=jnp.dtype("float64"))
        assert wide.apply({"params": params}, inputs(), BATCH).dtype == np.float64


def test_linear_is_the_dense_layer_fc_with_the_same_start():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, batch):
            x = nn.Dense(FEATURES, name="below")(x)
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            return nn.Dense(CLASSES, kernel_init=init, name="fc")(x)

    _, params = start(heads.linear())
    expected = Plain().init(jax.random.key(0), inputs(), BATCH)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    bound = 1 / np.sqrt(FEATURES)
    assert np.abs(params["fc"]["kernel"]).max() <= bound


def test_cosine_is_numpys():
    module, params = start(heads.cosine(scale=8.0))
    assert set(params["fc"]) == {"kernel"}
    params = drawn(params)
    logits, x, sown = apply(module, params)
    kernel = params["fc"]["kernel"]
    expected = x @ kernel / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(logits, 8 * expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sown["cosine"], expected, rtol=1e-5, atol=1e-6)


def neck_by_hand(neck, x, scale, bias, running=None):
    """LayerNorm is over the features, BatchNorm over the rows or with running statistics."""
    axis = 1 if neck == "layer" else 0
    mean, var = running or (x.mean(axis, keepdims=True), x.var(axis, keepdims=True))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("neck", ["layer", "batch"])
@pytest.mark.parametrize("head", [heads.cosine, heads.linear_and_cosine])
def test_the_neck_is_before_all_classifiers(head, neck):
    module = Parent(head(neck=neck))
    variables = module.init(jax.random.key(0), inputs(), BATCH)
    params = drawn(variables["params"])
    for train in (True, False):
        logits, kept = module.apply(
            {**variables, "params": params}, inputs(), BATCH, INFO._replace(train=train),
            mutable=["intermediates", "batch_stats"],
        )  # fmt: skip
        x, sown = kept["intermediates"]["embedding"][0], kept["intermediates"]["cosine"][0]
        running = (0.0, 1.0) if neck == "batch" and not train else None
        y = neck_by_hand(neck, np.asarray(x), **params["neck"], running=running)
        arc = params["fc" if head is heads.cosine else "arc"]["kernel"]
        cosines = y @ arc / np.linalg.norm(y, axis=1)[:, None] / np.linalg.norm(arc, axis=0)
        np.testing.assert_allclose(sown, cosines, rtol=1e-4, atol=1e-5)
        expected = 30 * cosines
        if head is heads.linear_and_cosine:
            expected = y @ params["fc"]["kernel"] + params["fc"]["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert ("batch_stats" in variables) == (neck == "batch")


def test_the_neck_of_two_layers_is_the_winners():
    """As PyTorch has it, in training and in evaluation."""
    module = Parent(heads.linear_and_cosine("two_layers"))
    variables = module.init(jax.random.key(0), inputs(), BATCH)
    params, wide = drawn(variables["params"]), heads.NECK_WIDTH
    stack = torch.nn.Sequential(
        torch.nn.BatchNorm1d(FEATURES + CELL_TYPES), torch.nn.Linear(FEATURES + CELL_TYPES, wide),
        torch.nn.ReLU(), torch.nn.BatchNorm1d(wide), torch.nn.Linear(wide, wide),
        torch.nn.BatchNorm1d(wide),
    )  # fmt: skip
    places = {"neck_in": 0, "neck_first": 1, "neck_middle": 3, "neck_second": 4, "neck": 5}
    with torch.no_grad():
        for name, place in places.items():
            given = {"bias": np.zeros(wide), **params[name]}  # their linear layers have no bias
            weight = given["kernel"].T if "kernel" in given else given["scale"]
            stack[place].weight.copy_(torch.tensor(weight))
            stack[place].bias.copy_(torch.tensor(given["bias"]))
        for train in (False, True):
            logits, kept = module.apply(
                {**variables, "params": params}, inputs(), BATCH, INFO._replace(train=train),
                mutable=["intermediates", "batch_stats"],
            )  # fmt: skip
            x = np.asarray(kept["intermediates"]["embedding"][0])
            x = torch.tensor(np.concatenate([x, np.eye(CELL_TYPES)[BATCH["cell_type"]]], 1)).float()
            y = stack.train(train)(x).numpy()
            expected = y @ params["fc"]["kernel"] + params["fc"]["bias"]
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
            arc = params["arc"]["kernel"]
            cosines = y @ arc / np.linalg.norm(y, axis=1)[:, None] / np.linalg.norm(arc, axis=0)
            np.testing.assert_allclose(kept["intermediates"]["cosine"][0], cosines, atol=1e-4)


def test_cosine_of_zero_features_has_a_finite_gradient():
    def total(x):
        return jnp.sum(heads.normalise(x, 1) @ jnp.ones((3, 2)))

    x = jnp.zeros((2, 3))
    assert total(x) == 0 and np.isfinite(jax.grad(total)(x)).all()


def test_one_hot_adds_a_bias_for_each_cell_type_and_class():
    module, params = start(heads.cell_type_one_hot())
    assert params["fc"]["kernel"].shape == (FEATURES + CELL_TYPES, CLASSES)
    params = drawn(params)
    logits, x, _ = apply(module, params)
    kernel, bias = params["fc"]["kernel"], params["fc"]["bias"]
    expected = x @ kernel[:FEATURES] + kernel[FEATURES + BATCH["cell_type"]] + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_film_starts_as_the_linear_head():
    module, params = start(heads.cell_type_film())
    linear, expected = start(heads.linear())
    for name in ("below", "fc"):
        jax.tree.map(np.testing.assert_array_equal, params[name], expected[name])
    np.testing.assert_array_equal(apply(module, params)[0], apply(linear, expected)[0])


def test_film_scales_and_shifts_by_cell_type():
    module, params = start(heads.cell_type_film())
    params = drawn(params)
    logits, x, _ = apply(module, params)
    rows = []
    for features, c in zip(x, BATCH["cell_type"], strict=True):
        y = (1 + params["film_scale"][c]) * features + params["film_shift"][c]
        rows.append(y @ params["fc"]["kernel"] + params["fc"]["bias"])
    np.testing.assert_allclose(logits, rows, rtol=1e-5, atol=1e-5)


def test_adversary_classifies_as_linear_and_sows_logits_of_experiments():
    module, params = start(heads.domain_adversary(hidden=7))
    params = drawn(params)
    logits, x, sown = apply(module, params)
    fc, hidden, out = params["fc"], params["domain_hidden"], params["domain_fc"]
    np.testing.assert_allclose(logits, x @ fc["kernel"] + fc["bias"], rtol=1e-5, atol=1e-5)
    y = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0)
    assert sown["domain_logits"].shape == (ROWS, EXPERIMENTS) and y.shape == (ROWS, 7)
    expected = y @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(sown["domain_logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ramp, progress, strength", [(0, 0.2, 1), (5, 0.2, math.tanh(0.5))])
def test_dann_descends_for_the_adversary_and_climbs_for_the_features(ramp, progress, strength):
    """Finite differences of the adversary's loss: above the reversal the gradient has their sign,
    below it their value times -reversal * weight; 2 / (1 + exp(-x)) - 1 is tanh(x / 2)."""
    reversal, weight, info = 0.3, 2.0, INFO._replace(progress=progress)
    with jax.enable_x64(True):
        module = Parent(heads.domain_adversary(8, reversal, ramp), dtype=jnp.dtype("float64"))
        params = module.init(jax.random.key(0), inputs(), BATCH)["params"]
        params = jax.tree.map(np.float64, drawn(params))
        loss = losses.dann(weight)

        def penalty(params):
            logits, kept = module.apply(
                {"params": params}, inputs(dtype=np.float64), BATCH, info,
                mutable=["intermediates"],
            )  # fmt: skip
            outputs = {
                "domain_logits": kept["intermediates"]["domain_logits"][0],
                "cross_entropy": jnp.zeros(ROWS),
            }
            return jnp.mean(loss.function(outputs, BATCH, loss.init(VOCABULARY), info)[0])

        penalty, gradient = jax.jit(penalty), jax.jit(jax.grad(penalty))(params)
        below = -reversal * strength
        for layer, factor in (("domain_fc", 1), ("domain_hidden", 1), ("below", below)):
            kernel = params[layer]["kernel"]
            direction = np.random.default_rng(3).normal(size=kernel.shape)

            def moved(step, layer=layer, kernel=kernel, direction=direction):
                new = params[layer] | {"kernel": kernel + step * direction}
                return penalty(params | {layer: new})

            slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
            assert abs(slope) > 1e-3
            found = np.sum(gradient[layer]["kernel"] * direction)
            np.testing.assert_allclose(found, factor * slope, rtol=1e-6)
        assert not np.any(gradient["fc"]["kernel"])


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="cosine: scale.*0"):
        heads.cosine(0)
    with pytest.raises(ValueError, match="neck is 'group'.*'layer', 'batch'"):
        heads.cosine(neck="group")
    with pytest.raises(ValueError, match="neck is 'x'"):
        heads.linear_and_cosine("x")
    with pytest.raises(ValueError, match="hidden is 0"):
        heads.domain_adversary(0)
