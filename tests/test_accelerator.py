"""Numbers on the accelerator that is there; without one on the CPU, as part of the other tests.

`pytest -m accelerator` leaves JAX the device. Tolerances are those of TF32 on GPUs and of bfloat16.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example_info import make_info
from screens import tiny_config, tiny_images

from benchmarks.given import OnDevices
from benchmarks.plain_linen import PlainResNet50
from rxrx1_jax.model import resnet
from rxrx1_jax.training import parallel, setup, steps

CLASSES, BLOCKS = 5, (1, 1)
each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def rounding(dtype) -> float:
    """Relative error of a sum of products."""
    platform = jax.default_backend()
    if dtype == jnp.bfloat16 or platform == "tpu":
        return 4e-3
    return 1e-6 if platform == "cpu" else 1e-3  # TF32


def error(found, expected) -> float:
    """Relative to the length of what was expected, over all arrays of a tree."""
    found, expected = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.accelerator
@each_dtype
@pytest.mark.parametrize(
    "size, stride, side", [(1, 1, 8), (1, 2, 8), (3, 2, 8), (3, 1, 3), (7, 2, 20)]
)
def test_convolution_and_its_gradients(dtype, size, stride, side):
    """Against sums in float64, by their definition."""
    x, kernel = normal(0, 2, side, side, 6), normal(1, size, size, 6, 4)
    x, kernel = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, kernel))
    out = -(-side // stride)
    dy = np.asarray(jnp.asarray(normal(2, 2, out, out, 4), dtype), np.float64)
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    y, d_padded, d_kernel = np.zeros_like(dy), np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in np.ndindex(size, size):
        window = np.s_[:, i : i + stride * out : stride, j : j + stride * out : stride]
        y += padded[window] @ kernel[i, j]
        d_padded[window] += dy @ kernel[i, j].T
        d_kernel[i, j] = np.einsum("nhwc,nhwd->cd", padded[window], dy)
    dx = d_padded[:, size // 2 : size // 2 + side, size // 2 : size // 2 + side]

    @jax.jit
    def ours(x, kernel, dy):
        y, gradients = jax.vjp(partial(resnet.convolve, stride=stride), x, kernel)
        return y, *gradients(dy)

    found = ours(*(jnp.asarray(a, dtype) for a in (x, kernel, dy)))
    for got, expected in zip(found, (y, dx, d_kernel), strict=True):
        assert error(got, expected) < rounding(dtype)


@pytest.mark.accelerator
@each_dtype
@pytest.mark.parametrize("side", [7, 16])
def test_pooling_and_its_gradient_are_exact(dtype, side):
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, side, side, 3)), dtype)  # ties
    out = -(-side // 2)
    dy = jnp.asarray(np.random.default_rng(1).integers(1, 9, (2, out, out, 3)), dtype)
    padded = np.full((2, side + 2, side + 2, 3), -np.inf)
    padded[:, 1:-1, 1:-1] = np.asarray(x, np.float64)
    y, dx = np.zeros(dy.shape), np.zeros(padded.shape)
    for n, i, j, c in np.ndindex(*dy.shape):
        window = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        a, b = np.unravel_index(window.argmax(), window.shape)  # the first of equal values
        y[n, i, j, c] = window[a, b]
        dx[n, 2 * i + a, 2 * j + b, c] += float(dy[n, i, j, c])
    found, gradient = jax.jit(lambda x, dy: _with_gradient(resnet.max_pool, x, dy))(x, dy)
    np.testing.assert_array_equal(np.asarray(found, np.float64), y)
    np.testing.assert_array_equal(np.asarray(gradient, np.float64), dx[:, 1:-1, 1:-1])


def _with_gradient(function, x, dy):
    y, gradient = jax.vjp(function, x)
    return y, gradient(dy)[0]


@pytest.mark.accelerator
@each_dtype
def test_batch_norm_in_training(dtype):
    """Output and running values of the layer that the networks use, against NumPy."""
    _, norm = resnet._layers(dtype, None, train=True)
    x = jnp.asarray(3 * normal(0, 8, 12, 12, 16) + 5 * normal(1, 16), dtype)
    given, layer = np.asarray(x, np.float64), norm()
    variables = layer.init(jax.random.key(0), x)
    y, updated = jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    mean, variance = given.mean((0, 1, 2)), given.var((0, 1, 2))
    assert error(y, (given - mean) / np.sqrt(variance + 1e-5)) < max(rounding(dtype), 1e-5)
    stats = updated["batch_stats"]
    assert error(stats["mean"], 0.1 * mean) < 1e-5
    assert error(stats["var"], 0.9 + 0.1 * variance) < 1e-5


def make_spec(model: nn.Module) -> steps.StepSpec:
    sgd, vocabulary = optax.sgd(0.1, momentum=0.9), make_info(CLASSES).vocabulary
    return steps.StepSpec(model, sgd, lambda step: jnp.float32(0.1), vocabulary, 10)


def ours(dtype, axis: str | None = None) -> nn.Module:
    return resnet.ResNet(BLOCKS, resnet.BottleneckBlock, dtype=dtype, bn_axis_name=axis)


def batch_of(rows: int) -> dict[str, np.ndarray]:
    return {
        "image": normal(0, rows, 32, 32, 6), "label": np.arange(rows, dtype=np.int32) % CLASSES,
        "mask": np.ones(rows, bool),
    }  # fmt: skip


def first_state(spec: steps.StepSpec) -> steps.TrainState:
    """With noise on all parameters: some begin at 0, and so would what they multiply."""
    state = steps.create_state(spec, jax.random.key(0), (32, 32, 6))
    leaves, tree = jax.tree.flatten(state.params)
    noisy = [x + 0.1 * normal(i, *x.shape) for i, x in enumerate(leaves)]
    return state.replace(params=jax.tree.unflatten(tree, noisy))


@pytest.mark.accelerator
@each_dtype
def test_a_step_is_that_of_the_plain_network(dtype):
    """Of Flax's own layers, in full float32."""
    spec = make_spec(ours(dtype))
    plain = make_spec(PlainResNet50(blocks=BLOCKS))
    state, batch = first_state(spec), batch_of(16)
    with jax.default_matmul_precision("highest"):
        expected, metrics = jax.jit(partial(steps.train_step, plain))(state, batch)
    found, ours_metrics = jax.jit(partial(steps.train_step, spec))(state, batch)
    assert error(ours_metrics[0], metrics[0]) < rounding(dtype)  # the loss
    moved = [jax.tree.map(jnp.subtract, x.params, state.params) for x in (found, expected)]
    assert error(*moved) < 40 * rounding(dtype)
    assert error(found.batch_stats, expected.batch_stats) < rounding(dtype)


@pytest.mark.accelerator
def test_pmap_takes_the_step_of_jit_and_each_gives_the_same_bits_again():
    found, batch = [], batch_of(8 * jax.device_count())
    for parallelism in ("jit", "jit", "pmap", "pmap"):
        axis = parallel.AXIS if parallelism == "pmap" else None
        spec = make_spec(ours(jnp.float32, axis))
        devices = OnDevices(parallelism, spec)
        state, metrics = devices.train_step(devices.put(first_state(spec)), batch)
        found.append(jax.device_get((state.params, state.batch_stats, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *found[:2])
    jax.tree.map(np.testing.assert_array_equal, *found[2:])
    assert error(found[2], found[0]) < rounding(jnp.float32)


@pytest.mark.accelerator
@pytest.mark.parametrize("where", ["device", "host"])
def test_kept_images_make_the_same_batches(where):
    made = []
    for cache in ("none", where):
        batch = 2 * jax.device_count()
        config = tiny_config(data__cache=cache, optim__batch_size=batch, eval__batch_size=batch)
        ready = setup.prepare(config, tiny_images())
        made.append([jax.device_get(ready.train_batch(step)) for step in (0, 2)])
    jax.tree.map(np.testing.assert_array_equal, *made)


@pytest.mark.devices
@pytest.mark.parametrize("parallelism, remat", [("jit", False), ("jit", True), ("pmap", False)])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_steps_lower_for_accelerators(parallelism, remat, platform, monkeypatch):
    """To the compiler's language: what a device that is not here would be given.

    Micro-batches are one loop with one copy of the network; remat has the blocks twice.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")  # as in a run
    pmap, images = parallelism == "pmap", tiny_images()

    def lowered(step, *arguments):
        jitted = jax.jit(step) if pmap else step
        return jitted.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    for parts in (1, 2):
        config = tiny_config(
            train__parallelism=parallelism, optim__batch_size=16, optim__accumulation=parts,
            model__remat=remat,
        )  # fmt: skip
        ready = setup.prepare(config, images)
        state, draw = ready.abstract_state, next(ready.train_draws(0))
        text = lowered(ready.train_step, state, ready.train_store(), draw)
        # Nine forward, nine gradients of kernels, eight of inputs; with remat the blocks' again.
        assert text.count("stablehlo.convolution") == (34 if remat else 26) and "bf16" in text
        assert ("stablehlo.while" in text) == (parts > 1) and ("all_reduce" in text) == pmap
    store, draws = ready.evaluation_draws(ready.split.test)
    text = lowered(ready.evaluator(steps.eval_step), state, store, next(draws))
    assert text.count("stablehlo.convolution") == 9
