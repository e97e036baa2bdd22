"""cpu_ops.py against the plain operations of JAX and Flax and their automatic gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rxrx1_jax.model import cpu_ops


def plain_convolve(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def plain_batch_norm(x, scale, bias, shortcut, relu, epsilon=1e-5):
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + epsilon) * scale + bias
    y = y if shortcut is None else y + shortcut
    return (nn.relu(y) if relu else y), mean, var


def plain_max_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def value_and_gradients(function, weights, *arguments):
    """The function, and the gradients of sum(weights * function) by all its arguments."""

    def total(*arguments):
        y = function(*arguments)
        return jnp.sum(weights * y), y

    grads, y = jax.jit(jax.grad(total, tuple(range(len(arguments))), has_aux=True))(*arguments)
    return [y, *grads]


def normal(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize(
    "size, inputs, features",
    # Both sides of the limits: small maps, few channels, narrow and wide gradients; odd sizes.
    [
        ((1, 1), 3, 5),
        ((2, 3), 5, 3),
        ((9, 12), 3, 5),
        ((11, 10), 20, 6),
        ((15, 17), 6, 20),
        ((15, 17), 6, 70),
    ],
)
def test_convolve_and_its_gradients_are_the_plain_ones(
    float64, kernel, stride, size, inputs, features
):
    x, weights = normal(0, 2, *size, inputs), normal(1, kernel, kernel, inputs, features)
    cotangent = normal(2, *plain_convolve(x, weights, stride).shape)
    found = value_and_gradients(lambda x, k: cpu_ops.convolve(x, k, stride), cotangent, x, weights)
    expected = value_and_gradients(lambda x, k: plain_convolve(x, k, stride), cotangent, x, weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_wide_kernel_gradients_keep_their_order(float64):
    x, weights = normal(0, 2, 3, 3, 400), normal(1, 1, 1, 400, 300)
    cotangent = normal(2, 2, 3, 3, 300)
    found = value_and_gradients(lambda x, k: cpu_ops.convolve(x, k, 1), cotangent, x, weights)
    expected = value_and_gradients(lambda x, k: plain_convolve(x, k, 1), cotangent, x, weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
def test_batch_norm_and_its_gradients_are_the_plain_ones(float64, relu, shortcut):
    shape = (3, 5, 4, 7)
    arguments = [1 + 2 * normal(0, *shape), normal(1, 7), normal(2, 7)]
    if shortcut:
        arguments.append(normal(3, *shape))

    def ours(x, scale, bias, shortcut=None):
        return cpu_ops.batch_norm(x, scale, bias, shortcut, relu, 1e-5, None)[0]

    def plain(x, scale, bias, shortcut=None):
        return plain_batch_norm(x, scale, bias, shortcut, relu)[0]

    cotangent = normal(4, *shape)
    found = value_and_gradients(ours, cotangent, *arguments)
    expected = value_and_gradients(plain, cotangent, *arguments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    _, mean, var = cpu_ops.batch_norm(*arguments[:3], None, relu, 1e-5, None)
    np.testing.assert_allclose(mean, arguments[0].mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(var, arguments[0].var((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("mapped", [jax.pmap, jax.vmap], ids=["pmap", "vmap"])
def test_batch_norm_over_an_axis_is_that_of_the_whole_batch(float64, mapped):
    devices = 8
    x, scale, bias, shortcut = (
        1 + normal(0, 2 * devices, 3, 3, 5), normal(1, 5), normal(2, 5),
        normal(3, 2 * devices, 3, 3, 5),
    )  # fmt: skip
    cotangent = normal(4, *x.shape)

    def total(function, x, scale, bias, shortcut, cotangent):
        y, mean, var = function(x, scale, bias, shortcut, True)
        return jnp.sum(cotangent * y), (y, mean, var)

    def ours(x, scale, bias, shortcut, relu):
        return cpu_ops.batch_norm(x, scale, bias, shortcut, relu, 1e-5, "devices")

    def split(x):
        return x.reshape(devices, -1, *x.shape[1:])

    grad = partial(jax.grad, argnums=(0, 1, 2, 3), has_aux=True)
    run = mapped(grad(partial(total, ours)), in_axes=(0, None, None, 0, 0), axis_name="devices")
    (dx, dscale, dbias, dshortcut), (y, mean, var) = run(
        split(x), scale, bias, split(shortcut), split(cotangent)
    )
    expected, (plain_y, plain_mean, plain_var) = grad(partial(total, plain_batch_norm))(
        x, scale, bias, shortcut, cotangent
    )
    # The gradients of the shared parameters are each device's own share, as with Flax.
    found = (dx.reshape(x.shape), dscale.sum(0), dbias.sum(0), dshortcut.reshape(x.shape))
    for a, b in zip((*found, y.reshape(x.shape)), (*expected, plain_y), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
    for value, plain in ((mean, plain_mean), (var, plain_var)):
        np.testing.assert_allclose(value, np.broadcast_to(plain, value.shape), rtol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (9, 12), (7, 5)])
def test_max_pool_and_its_gradient_are_the_plain_ones_also_at_ties(float64, size):
    # Few values, so that most windows have several largest ones.
    x = np.random.default_rng(0).integers(-1, 3, (3, *size, 4)).astype(np.float64)
    cotangent = normal(1, *plain_max_pool(x).shape)
    found = value_and_gradients(cpu_ops.max_pool, cotangent, x)
    expected = value_and_gradients(plain_max_pool, cotangent, x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_not_a_number_is_not_pooled_away():
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert np.all(np.isnan(cpu_ops.max_pool(x)))


def test_bfloat16_rounds_once():
    """Statistics are summed in float32, so that only input and output are rounded."""
    x = 3 + normal(0, 16, 8, 8, 4, dtype=np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    shortcut, cotangent = jnp.asarray(normal(1, *x.shape), jnp.bfloat16), normal(2, *x.shape)
    # What bfloat16 holds exactly, as it flows back through the rounded output.
    cotangent = np.asarray(jnp.asarray(cotangent, jnp.bfloat16), np.float32)
    scale, bias = jnp.full(4, 1.5), jnp.full(4, 0.5)

    def ours(x, shortcut):
        y, mean, _ = cpu_ops.batch_norm(x, scale, bias, shortcut, True, 1e-5, None)
        assert y.dtype == jnp.bfloat16 and mean.dtype == jnp.float32
        return y.astype(jnp.float32)

    with jax.numpy_rank_promotion("allow"):
        found = value_and_gradients(ours, cotangent, x, shortcut)
        expected = value_and_gradients(
            lambda x, s: plain_batch_norm(x, scale, bias, s, True)[0],
            cotangent, x.astype(jnp.float32), shortcut.astype(jnp.float32),
        )  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        # bfloat16 keeps 8 bits, so half a unit is 2**-9 of a value; a little more for the sums.
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-4)


def test_gradients_of_a_sharded_batch_are_those_of_the_whole(float64):
    """Under jit the batch is sharded over eight devices and the sums are those of all rows."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    by_row, copied = (NamedSharding(mesh, PartitionSpec(*a)) for a in (("batch",), ()))

    def loss(operations, x, kernel, wide, scale, bias):
        convolve, batch_norm, max_pool = operations
        y = max_pool(batch_norm(convolve(x, kernel, 1), scale, bias, None, True)[0])
        y = batch_norm(convolve(y, wide, 2), scale, bias, None, False)[0]
        return jnp.sum(jnp.sin(y))

    ours = (
        cpu_ops.convolve, lambda *a: cpu_ops.batch_norm(*a, 1e-5, None), cpu_ops.max_pool
    )  # fmt: skip
    plain = (plain_convolve, plain_batch_norm, plain_max_pool)
    arguments = (
        normal(0, 16, 12, 12, 3), normal(1, 3, 3, 3, 6), normal(2, 3, 3, 6, 6), normal(3, 6),
        normal(4, 6),
    )  # fmt: skip
    expected = jax.jit(jax.grad(partial(loss, plain), (0, 1, 2, 3, 4)))(*arguments)
    sharded = jax.jit(
        jax.grad(partial(loss, ours), (0, 1, 2, 3, 4)), in_shardings=(by_row, *[copied] * 4)
    )(*arguments)
    for a, b in zip(sharded, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
