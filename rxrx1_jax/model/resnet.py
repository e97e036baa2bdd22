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

from rxrx1_jax.model import cpu_ops, heads

Batch = Mapping[str, jax.Array]
LINEAR = heads.linear()

BATCH_NORM_EPSILON = 1e-5  # torch.nn.BatchNorm2d
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running value; PyTorch writes 0.1 for the new one

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def on_cpu() -> bool:
    """Whether networks are traced for XLA's CPU back-end: the one switch between `cpu_ops` and the
    plain operations, which GPUs and TPUs get."""
    return jax.default_backend() == "cpu"


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """2-D convolution with odd kernel k and k // 2 zeros on every side.

    x: [N, H, W, C] and kernel: [k, k, C, D] of the same dtype -> [N, H', W', D] with
    H' = ceil(H / stride), W' = ceil(W / stride).
    """
    if on_cpu():
        return cpu_ops.convolve(x, kernel, stride)
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, padding 1: [N, H, W, C] -> [N, ceil(H/2), ceil(W/2), C]."""
    if on_cpu():
        return cpu_ops.max_pool(x)
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


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


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm, then the shortcut is added and the ReLU taken where asked: [N, H, W, C]."""

    @nn.compact
    def __call__(  # type: ignore[override]  # Flax's own further arguments are not needed here
        self, x: jax.Array, shortcut: jax.Array | None = None, relu: bool = True
    ) -> jax.Array:
        if self.use_running_average or not on_cpu():
            y = super().__call__(x)
            y = y if shortcut is None else y + shortcut
            return nn.relu(y) if relu else y
        shape = (x.shape[-1],)
        # The names and the initial values are those of Flax.
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        y, mean, var = cpu_ops.batch_norm(
            x, scale, bias, shortcut, relu, self.epsilon,
            None if self.is_initializing() else self.axis_name,
        )  # fmt: skip
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_var, var)):
                old = self.momentum * running.value
                running.value = old + (1 - self.momentum) * jax.lax.stop_gradient(value)
        return y


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
        y = self.norm(name="bn1")(y)
        y = self.conv(self.features, 3, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = self.conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, relu=False)
        return self.norm(name="bn2", scale_init=nn.initializers.zeros)(y, shortcut=x)


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
        y = self.norm(name="bn1")(self.conv(self.features, 1, name="conv1")(x))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        y = self.conv(out, 1, name="conv3")(y)
        if self.stride != 1 or x.shape[-1] != out:
            x = self.conv(out, 1, self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, relu=False)
        return self.norm(name="bn3", scale_init=nn.initializers.zeros)(y, shortcut=x)


class ResNet(nn.Module):
    """A residual network: images [N, H, W, 6] -> logits float32 [N, num_classes].

    Parameters and BatchNorm statistics are float32; `dtype` is the type of the computation between
    (bfloat16 for accelerators). With `train=True` BatchNorm uses the batch and updates its running
    values: pass `mutable=["batch_stats"]`. "The batch" is the global one under `jit`; under `pmap`
    it is the device's own unless `bn_axis_name` names the mapped axis. `head` makes the logits from
    the pooled features; some read codes int32 [N] of `batch`: cell_type, experiment.
    """

    stage_sizes: tuple[int, ...]  # residual blocks in each stage
    block: type[BasicBlock] | type[BottleneckBlock]
    num_classes: int
    width: int = 64  # features of the stem and the first stage; they double from stage to stage
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None
    head: heads.Head = LINEAR

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, batch: Batch | None = None) -> jax.Array:
        conv, norm = _layers(self.dtype, self.bn_axis_name, train)
        x = conv(self.width, 7, 2, name="conv1")(images)
        x = max_pool(norm(name="bn1")(x))
        for stage, blocks in enumerate(self.stage_sizes, 1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                features = self.width * 2 ** (stage - 1)
                name = f"layer{stage}_{i}"
                x = self.block(features, stride, conv, norm, name=name)(x)
        return _classify(self, jnp.mean(x, (1, 2)), batch)


class DemoResNet(nn.Module):
    """About 100,000 parameters for 64-pixel sites: images [N, H, W, 6] -> logits [N, num_classes].

    A 3x3 stem with stride 2, three basic blocks (32 /2, 32, 64 /2 at the default width), and both
    the mean and the standard deviation of each feature over the site: in a field of many cells, how
    much a feature varies says as much as its mean. The rest is as in `ResNet`.
    """

    num_classes: int
    width: int = 64  # features of the last block
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None
    head: heads.Head = LINEAR

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, batch: Batch | None = None) -> jax.Array:
        conv, norm = _layers(self.dtype, self.bn_axis_name, train)
        x = norm(name="bn1")(conv(self.width // 4, 3, 2, name="conv1")(images))
        for i, (features, stride) in enumerate(
            [(self.width // 2, 2), (self.width // 2, 1), (self.width, 2)], 1
        ):
            x = BasicBlock(features, stride, conv, norm, name=f"block{i}")(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # The small constant keeps the gradient of the root finite where a feature is constant.
        deviation = jnp.sqrt(jnp.var(x, (1, 2)) + 1e-6)
        pooled = jnp.concatenate([jnp.mean(x, (1, 2)), deviation], -1)
        return _classify(self, pooled, batch)


def _layers(dtype: Any, bn_axis_name: str | None, train: bool) -> tuple[Callable, Callable]:
    norm = partial(
        BatchNorm, use_running_average=not train, momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON, dtype=dtype, axis_name=bn_axis_name,
    )  # fmt: skip
    return partial(Conv, dtype=dtype), norm


def _classify(
    network: ResNet | DemoResNet, features: jax.Array, batch: Batch | None
) -> jax.Array:
    # The embedding, which `mutable=["intermediates"]` gets.
    network.sow("intermediates", "embedding", features)
    return network.head(network, features, batch or {}, network.num_classes)


RESNETS: dict[str, tuple[tuple[int, ...], type[BasicBlock] | type[BottleneckBlock]]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock),
    "resnet34": ((3, 4, 6, 3), BasicBlock),
    "resnet50": ((3, 4, 6, 3), BottleneckBlock),
    "resnet101": ((3, 4, 23, 3), BottleneckBlock),
}
MODELS = (*RESNETS, "resnet_demo")


def create_model(
    name: str,
    num_classes: int,
    *,
    width: int = 64,
    dtype: Any = jnp.float32,
    bn_axis_name: str | None = None,
    head: heads.Head = LINEAR,
) -> ResNet | DemoResNet:
    """A network by name (`MODELS`); raises ValueError for an unknown name.

    dtype: float32 or bfloat16 (or their names); logits and parameters are float32 in both.
    """
    options = dict(
        num_classes=num_classes, width=width, dtype=jnp.dtype(dtype), bn_axis_name=bn_axis_name,
        head=head,
    )  # fmt: skip
    if name == "resnet_demo":
        return DemoResNet(**options)
    if name not in RESNETS:
        raise ValueError(f"model.name is {name!r}; choose one of {', '.join(MODELS)}")
    stage_sizes, block = RESNETS[name]
    return ResNet(stage_sizes, block, **options)
