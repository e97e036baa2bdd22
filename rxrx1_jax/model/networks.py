"""Networks by name.

A factory returns a function (spec: NetworkSpec) -> a Flax module. The module is called as
(images [N, H, W, C], batch, info: Info) -> logits float32 [N, K], K classes of `info.vocabulary`,
most easily by `spec.head`. `batch` holds cell_type and experiment, int32 [N].

Parameters, and BatchNorm statistics in the collection batch_stats, are its only variables. Dropout
takes its key from the stream "dropout", where `info.train` is true. What the network sows as
"embedding" (self.sow("intermediates", "embedding", features)) is its embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from rxrx1_jax.config import load
from rxrx1_jax.model import heads
from rxrx1_jax.model.resnet import LINEAR, BasicBlock, BottleneckBlock, DemoResNet, ResNet
from rxrx1_jax.model.vit import ViT


class NetworkSpec(NamedTuple):
    """What the settings of a run say of its network, whatever the network is."""

    head: heads.Head = LINEAR
    width: int = 64
    dtype: Any = jnp.float32  # of the computation; logits and parameters are float32
    bn_axis_name: str | None = None  # mapped axis over which BatchNorm averages
    remat: bool = False  # blocks are computed again in the backward pass (`flax.linen.remat`)


Network = Callable[[NetworkSpec], nn.Module]


def _resnet(sizes: tuple[int, ...], block: type[BasicBlock] | type[BottleneckBlock]) -> Network:
    return lambda spec: ResNet(sizes, block, **spec._asdict())


resnet18 = partial(_resnet, (2, 2, 2, 2), BasicBlock)
resnet34 = partial(_resnet, (3, 4, 6, 3), BasicBlock)
resnet50 = partial(_resnet, (3, 4, 6, 3), BottleneckBlock)
resnet101 = partial(_resnet, (3, 4, 23, 3), BottleneckBlock)


def resnet_demo() -> Network:
    def network(spec: NetworkSpec) -> nn.Module:
        if spec.width < 4:
            raise ValueError(f"model.width={spec.width}: expected 4 or more, by its stem")
        return DemoResNet(**spec._asdict())

    return network


def _vit(heads: int, patch: int = 16) -> Network:
    """patch: side of a patch of one channel in pixels; it divides the sides of the image."""
    if patch < 1:
        raise ValueError(f"patch is {patch}; expected 1 or more")
    return lambda spec: ViT(heads, patch, **spec._asdict())


vit_tiny = partial(_vit, 3)
vit_small = partial(_vit, 6)
vit_base = partial(_vit, 12)


def create_model(name: str, **settings: Any) -> nn.Module:
    """One of our networks; settings are the fields of NetworkSpec."""
    return load("model.name", name)(NetworkSpec(**settings))
