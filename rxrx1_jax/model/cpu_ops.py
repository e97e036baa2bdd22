"""The three operations of a residual network that XLA's CPU back-end needs help with.

Each is the same function as its plain counterpart in `models.py`, with its own gradient:

- `convolve`: stride-1 convolutions run near the peak of the processor; gradients of kernels, input
  gradients of strided convolutions and maps of a few pixels do not. Those are written as matrix
  products, over shifted slices where the kernel is larger than one pixel.
- `batch_norm`: normalisation, the sum with the shortcut and the ReLU in one pass over the data, the
  gradient in two.
- `max_pool`: the gradient goes through the place of each maximum, kept as one byte a window.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

SMALL_MAP = 4  # pixels; up to this size one product over neighbourhoods beats a convolution
MANY_PIXELS = 512  # a sum over more of them wants its narrower factor first
FEW_CHANNELS = 16  # fewer make a row of neighbours too short for a product of its own
FEW_FEATURES = 64  # fewer, with few channels, and a convolution gives the kernel's gradient sooner

# Of XLA's compiler, for the training step: 28 % less temporary memory at the same speed.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """2-D convolution with odd kernel k and k // 2 zeros on every side.

    x: [N, H, W, C] and kernel: [k, k, C, D] of the same dtype -> [N, H', W', D] with
    H' = ceil(H / stride), W' = ceil(W / stride).
    """
    size = kernel.shape[0]
    if size == 1:
        return _product(x[:, ::stride, ::stride], kernel)
    if min(x.shape[1:3]) <= SMALL_MAP * stride:
        return _product(_neighbourhoods(x, size, stride), kernel)
    return _plain(x, kernel, stride)


def _convolve_forward(x, kernel, stride):
    return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, dy):
    x, kernel = saved
    size = kernel.shape[0]

    def forward(x):
        if size == 1:
            return _product(x[:, ::stride, ::stride], kernel)
        if stride == 1 and min(x.shape[1:3]) > SMALL_MAP:
            return _plain(x, kernel, stride)
        return _product(_neighbourhoods(x, size, stride), kernel)

    with jax.named_scope("input_gradient"):
        dx = jax.linear_transpose(forward, x)(dy)[0]
    with jax.named_scope("kernel_gradient"):
        return dx, _kernel_gradient(x, dy, size, stride)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., K] times a kernel of K * D values -> [..., D]."""
    flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _transposed_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum over pixels: [..., C], [..., D] -> [C, D]."""
    x, dy = _rows(x), _rows(dy)
    channels, features = x.shape[1], dy.shape[1]
    if features < channels and x.shape[0] > MANY_PIXELS:
        # The barrier keeps XLA from turning the product around again.
        return jax.lax.optimization_barrier(dy.T @ x).T
    return x.T @ dy


def _row_neighbourhoods(x: jax.Array, size: int, stride: int) -> jax.Array:
    """[N, H, W, C] -> [N, H + 2 * pad, W', size * C]: rows padded, neighbours within the row."""
    pad, width = size // 2, x.shape[2]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jnp.concatenate([x[:, :, j : j + width : stride] for j in range(size)], axis=-1)


def _neighbourhoods(x: jax.Array, size: int, stride: int) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', size * size * C], neighbourhoods in the kernel's order."""
    rows, height = _row_neighbourhoods(x, size, stride), x.shape[1]
    return jnp.concatenate([rows[:, i : i + height : stride] for i in range(size)], axis=-1)


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int, stride: int) -> jax.Array:
    """[N, H, W, C], [N, H', W', D] -> [size, size, C, D]; a product a row of the kernel, or one."""
    kernel = jnp.zeros((size, size, x.shape[-1], dy.shape[-1]), x.dtype)
    if size == 1:
        return _transposed_product(x[:, ::stride, ::stride], dy).reshape(kernel.shape)
    if x.shape[-1] < FEW_CHANNELS and min(x.shape[1:3]) > SMALL_MAP * stride:
        if dy.shape[-1] < FEW_FEATURES:
            return jax.linear_transpose(lambda kernel: _plain(x, kernel, stride), kernel)(dy)[0]
        return _transposed_product(_neighbourhoods(x, size, stride), dy).reshape(kernel.shape)
    rows, height = _row_neighbourhoods(x, size, stride), x.shape[1]
    gradients = [_transposed_product(rows[:, i : i + height : stride], dy) for i in range(size)]
    return jnp.stack(gradients).reshape(kernel.shape)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalisation by the statistics of the batch, plus shortcut, then ReLU if asked.

    x and shortcut: [N, H, W, C]; scale and bias: [C] -> y of x's shape and dtype, and the biased
    mean and variance [C] in float32 (float64 for float64), which carry no gradient. The sums are
    Flax's: var = E[x^2] - E[x]^2, both averaged over axis_name where one is given.
    """
    return _batch_norm_forward(x, scale, bias, shortcut, relu, epsilon, axis_name)[0]


def _batch_norm_forward(x, scale, bias, shortcut, relu, epsilon, axis_name):
    shape, dtype = x.shape, _wide(x.dtype)
    x = _rows(x)
    wide = x.astype(dtype)
    mean, square = jnp.mean(wide, 0), jnp.mean(wide * wide, 0)
    if axis_name is not None:
        mean, square = jax.lax.pmean((mean, square), axis_name)
    var = jnp.maximum(square - mean * mean, 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    slope = inverse * scale.astype(dtype)
    y = wide * slope[None] + (bias.astype(dtype) - mean * slope)[None]
    if shortcut is not None:
        y = y + _rows(shortcut).astype(dtype)
    y = (jnp.maximum(y, 0) if relu else y).astype(x.dtype)
    saved = (x, scale, None if shortcut is None else (), y if relu else None, mean, inverse)
    return (y.reshape(shape), mean, var), saved


def _batch_norm_backward(relu, epsilon, axis_name, saved, cotangents):
    del epsilon
    x, scale, shortcut, y, mean, inverse = saved
    shape = cotangents[0].shape
    dy = _rows(cotangents[0])
    if relu:
        dy = jnp.where(y > 0, dy, jnp.zeros_like(dy))
    wide = dy.astype(mean.dtype)
    if shortcut is None:
        total = jnp.sum(wide, 0)
    else:
        # As a product: XLA then keeps dy in memory instead of computing it anew in every user, back
        # through all the blocks of a stage.
        total = (jnp.ones((1, dy.shape[0]), mean.dtype) @ wide)[0]
    product = (jnp.sum(wide * x.astype(mean.dtype), 0) - mean * total) * inverse
    mean_dy, mean_product = total / dy.shape[0], product / dy.shape[0]
    if axis_name is not None:
        mean_dy, mean_product = jax.lax.pmean((mean_dy, mean_product), axis_name)
    # dx = slope * (dy - mean_dy - (x - mean) * inverse * mean_product)
    slope = inverse * scale.astype(mean.dtype)
    tilt = slope * inverse * mean_product
    dx = wide * slope[None] - x.astype(mean.dtype) * tilt[None]
    dx = dx + (mean * tilt - slope * mean_dy)[None]
    return (
        dx.astype(x.dtype).reshape(shape), product.astype(scale.dtype), total.astype(scale.dtype),
        None if shortcut is None else dy.reshape(shape),
    )  # fmt: skip


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The type of sums: float32, or float64 for float64."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N * H * W, C]."""
    return x.reshape(-1, x.shape[-1])


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padding 1: [N, H, W, C] -> [N, ceil(H/2), ceil(W/2), C]."""
    return _max_pool_forward(x)[0]


def _max_pool_forward(x):
    _, height, width, _ = x.shape
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = jax.lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    y = place = None
    for tap in range(9):
        i, j = divmod(tap, 3)
        value = padded[:, i : i + height : 2, j : j + width : 2]
        if y is None:
            y, place = value, jnp.zeros(value.shape, jnp.int8)
        else:
            # The first of equal values keeps the gradient, as in XLA's and PyTorch's pooling.
            place = jnp.where(value > y, jnp.int8(tap), place)
            y = jnp.maximum(y, value)
    return y, (place, np.empty((0, height, width)))


def _max_pool_backward(saved, dy):
    place, like = saved
    _, height, width = like.shape
    # Pixel 2a + p of a row lies in window a (as tap 1 if p is 0, as tap 2 if p is 1) and, if p is
    # 1, in window a + 1 as tap 0.
    windows = {0: [(0, 1)], 1: [(0, 2), (1, 0)]}
    more = ((0, 0), (0, 1), (0, 1), (0, 0))
    place, dy = jnp.pad(place, more, constant_values=-1), jnp.pad(dy, more)
    rows, columns = place.shape[1] - 1, place.shape[2] - 1

    def phase(p: int, q: int) -> jax.Array:
        parts = []
        for a, i in windows[p]:
            for b, j in windows[q]:
                hit = place[:, a : a + rows, b : b + columns] == 3 * i + j
                part = dy[:, a : a + rows, b : b + columns]
                parts.append(jnp.where(hit, part, jnp.zeros_like(part)))
        return sum(parts[1:], parts[0])

    dx = jnp.stack([jnp.stack([phase(p, q) for q in (0, 1)], 3) for p in (0, 1)], 2)
    dx = dx.reshape(dx.shape[0], 2 * rows, 2 * columns, dx.shape[-1])
    return (dx[:, :height, :width],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
