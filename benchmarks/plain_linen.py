"""ResNet-50 as Flax users write it: nn.Conv, nn.BatchNorm, nn.max_pool and nothing else.

After flax/examples/imagenet/models.py, with six input channels, the paddings of torchvision and the
names of `rxrx1_jax.model.resnet`, so that both have one tree of variables. Only to compare with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rxrx1_jax.data.info import Info
from rxrx1_jax.model.heads import classifier_init
from rxrx1_jax.model.resnet import he_normal_fan_out


class PlainBlock(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the features, and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        y = self.conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), strides, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, (1, 1), name="conv3")(y)
        y = self.norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = self.conv(4 * self.features, (1, 1), strides, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(y + x)


class PlainResNet50(nn.Module):
    """images [N, H, W, 6] -> logits float32 [N, K]; `batch` is unused."""

    dtype: Any = jnp.float32
    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each stage

    @nn.compact
    def __call__(self, images: jax.Array, batch: Any, info: Info) -> jax.Array:
        conv = partial(
            nn.Conv, use_bias=False, padding=0, dtype=self.dtype, kernel_init=he_normal_fan_out
        )
        norm = partial(
            nn.BatchNorm, use_running_average=not info.train, momentum=0.9, epsilon=1e-5,
            dtype=self.dtype,
        )  # fmt: skip
        x = conv(64, (7, 7), (2, 2), padding=3, name="conv1")(images)
        x = nn.relu(norm(name="bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks, 1):
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"layer{stage}_{i}"
                x = PlainBlock(64 * 2 ** (stage - 1), stride, conv, norm, name=name)(x)
        dense = nn.Dense(len(info.vocabulary.classes), kernel_init=classifier_init, name="fc")
        return dense(jnp.mean(x, (1, 2)).astype(jnp.float32))
