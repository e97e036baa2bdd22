"""Residual networks for six-channel sites.

ResNet-18/34/50/101 follow torchvision's conventions ("v1.5": stride in the 3x3 convolution of a
bottleneck, symmetric explicit padding, BatchNorm epsilon 1e-5), so that weights ported from PyTorch
give the same logits and gradients. One difference remains: Flax's running variance is biased (n),
PyTorch's is not (n - 1). `resnet_demo` is a network of about 100,000 parameters for
64-pixel sites that trains in minutes on two CPU cores.

Initialisation (He et al. 2015, arXiv:1502.01852; Goyal et al. 2017, arXiv:1706.02677): convolutions
normal with variance 2 / fan_out; BatchNorm scale 1 and bias 0, but scale 0 in the last BatchNorm of
every residual branch, so that a block starts as the identity (torchvision offers it as
`zero_init_residual`); the classifier as `heads` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data.info import Info
from rxrx1_jax.model import heads

Batch = Mapping[str, jax.Array]
LINEAR = heads.linear()

BATCH_NORM_EPSILON = 1e-5  # torch.nn.BatchNorm2d
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running value; PyTorch writes 0.1 for the new one
SMALL_MAP = 4  # pixels; up to this size one product over neighbourhoods beats a convolution

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def on_cpu() -> bool:
    """Whether programs are traced for XLA's CPU back-end, which gets other forms of some of them:
    the one switch."""
    return jax.default_backend() == "cpu"


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """2-D convolution with odd kernel k and k // 2 zeros on every side.

    x: [N, H, W, C] and kernel: [k, k, C, D] of the same dtype -> [N, H', W', D] with
    H' = ceil(H / stride), W' = ceil(W / stride). On a CPU those of one pixel and those of small
    maps are matrix products: XLA's convolutions, and above all their gradients, are slow there.
    """
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    if on_cpu() and size == 1:
        return _product(x[:, ::stride, ::stride], kernel)
    if on_cpu() and min(x.shape[1:3]) <= SMALL_MAP * stride:
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        x = jnp.concatenate([x[:, :, j : j + width : stride] for j in range(size)], -1)
        x = jnp.concatenate([x[:, i : i + height : stride] for i in range(size)], -1)
        return _product(x, kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, H, W, K] times a kernel of K * D values -> [N, H, W, D]."""
    # As a product of matrices, not of four dimensions: ResNet-50 at 128 px takes 1.2, not 1.55 s.
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padding 1: [N, H, W, C] -> [N, ceil(H/2), ceil(W/2), C].

    The gradient goes through the place of each maximum, kept as one byte per window: on a GPU it is
    the same in every run, where that of XLA's pooling adds in the order of arrival.
    """
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, Any]:
    _, height, width, _ = x.shape
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = jax.lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    y = padded[:, :height:2, :width:2]
    place = jnp.zeros(y.shape, jnp.int8)
    for tap in range(1, 9):
        i, j = divmod(tap, 3)
        value = padded[:, i : i + height : 2, j : j + width : 2]
        # The first of equal values keeps the gradient, as in XLA's and PyTorch's pooling.
        place = jnp.where(value > y, jnp.int8(tap), place)
        y = jnp.maximum(y, value)
    return y, (place, np.empty((0, height, width)))


def _max_pool_backward(saved: Any, dy: jax.Array) -> tuple[jax.Array]:
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


class Conv(nn.Module):
    """Convolution without bias: [N, H, W, C] -> [N, H / stride, W / stride, features]."""

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, self.stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18, ResNet-34 and the demo network)."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=nn.initializers.zeros)(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = self.conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(y + x)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the features, and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.features * self.expansion
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 1, name="conv1")(x)))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(out, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        if self.stride != 1 or x.shape[-1] != out:
            x = self.conv(out, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """A residual network: images [N, H, W, 6] -> logits float32 [N, K], K classes of `info`.

    Parameters and BatchNorm statistics are float32; `dtype` is the type of the computation between
    (bfloat16 for accelerators). Where `info.train` is true BatchNorm uses the batch and updates its
    running values: pass `mutable=["batch_stats"]`. "The batch" is the global one under `jit`; under
    `pmap` it is the device's own unless `bn_axis_name` names the mapped axis. `head` makes the
    logits from the pooled features; some heads read codes int32 [N] of `batch`: cell_type,
    experiment. With `remat` only what passes from block to block is kept for the backward pass.
    """

    stage_sizes: tuple[int, ...]  # residual blocks in each stage
    block: type[BasicBlock] | type[BottleneckBlock]
    width: int = 64  # features of the stem and the first stage; they double from stage to stage
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None
    head: heads.Head = LINEAR
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, batch: Batch, info: Info) -> jax.Array:
        conv, norm = _layers(self.dtype, self.bn_axis_name, info.train)
        block = nn.remat(self.block) if self.remat else self.block
        x = conv(self.width, 7, 2, name="conv1")(images)
        x = max_pool(nn.relu(norm(name="bn1")(x)))
        for stage, blocks in enumerate(self.stage_sizes, 1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                features = self.width * 2 ** (stage - 1)
                name = f"layer{stage}_{i}"
                x = block(features, stride, conv, norm, name=name)(x)
        return _classify(self, jnp.mean(x, (1, 2)), batch, info)


class DemoResNet(nn.Module):
    """About 100,000 parameters for 64-pixel sites: images [N, H, W, 6] -> logits [N, K].

    A 3x3 stem with stride 2, three basic blocks (32 /2, 32, 64 /2 at the default width), and both
    the mean and the standard deviation of each feature over the site: in a field of many cells, how
    much a feature varies says as much as its mean. The rest is as in `ResNet`.
    """

    width: int = 64  # features of the last block
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None
    head: heads.Head = LINEAR
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, batch: Batch, info: Info) -> jax.Array:
        conv, norm = _layers(self.dtype, self.bn_axis_name, info.train)
        block = nn.remat(BasicBlock) if self.remat else BasicBlock
        x = nn.relu(norm(name="bn1")(conv(self.width // 4, 3, 2, name="conv1")(images)))
        for i, (features, stride) in enumerate(
            [(self.width // 2, 2), (self.width // 2, 1), (self.width, 2)], 1
        ):
            x = block(features, stride, conv, norm, name=f"block{i}")(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # The small constant keeps the gradient of the root finite where a feature is constant.
        deviation = jnp.sqrt(jnp.var(x, (1, 2)) + 1e-6)
        pooled = jnp.concatenate([jnp.mean(x, (1, 2)), deviation], -1)
        return _classify(self, pooled, batch, info)


def _layers(dtype: Any, bn_axis_name: str | None, train: bool) -> tuple[Callable, Callable]:
    norm = partial(
        nn.BatchNorm, use_running_average=not train, momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON, dtype=dtype, axis_name=bn_axis_name,
    )  # fmt: skip
    return partial(Conv, dtype=dtype), norm


def _classify(
    network: ResNet | DemoResNet, features: jax.Array, batch: Batch, info: Info
) -> jax.Array:
    # The embedding, which `mutable=["intermediates"]` gets.
    network.sow("intermediates", "embedding", features)
    return network.head(network, features, batch, info)
