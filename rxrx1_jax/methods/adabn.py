"""AdaBN: BatchNorm statistics of a trained network, estimated anew on images of one batch.

Li, Wang, Shi, Liu and Hou 2016, "Revisiting batch normalization for practical domain adaptation"
(arXiv:1603.04779). No label and no weight is touched: of each BatchNorm layer the running mean and
variance are replaced by those of the given images, as they come through the adapted layers below.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rxrx1_jax.model.resnet import BATCH_NORM_MOMENTUM


def adapted_statistics(
    model: nn.Module, params: Any, batch_stats: Any, batches: Iterable[Mapping[str, jax.Array]]
) -> Any:
    """Running statistics from the images of `batches`, which are of equal size and not padded.

    Args:
      model: called as `model.apply(variables, images, train=True, batch=batch)`.
      params, batch_stats: of the network; of `batch_stats` the structure alone is used.
      batches: dicts with image [N, H, W, C] and what the network's head reads.

    Returns:
      A tree like `batch_stats`: mean of the batches' means m, and by the law of total variance
      mean(v + m^2) - mean(m)^2. In the first layer these are the moments of all images exactly;
      above it each batch was normalised by its own statistics, so larger batches are closer.

    Raises:
      ValueError: no batch.
    """
    count, total = 0, None
    zeros = jax.tree.map(jnp.zeros_like, batch_stats)
    for batch in batches:
        moments = _moments(model, params, zeros, dict(batch))
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        count += 1
    if total is None:
        raise ValueError("no images to estimate BatchNorm statistics from")
    return _statistics(jax.tree.map(lambda x: x / count, total))


@partial(jax.jit, static_argnums=0)
def _moments(model: nn.Module, params: Any, zeros: Any, batch: dict[str, jax.Array]) -> Any:
    """First and second moments of every layer's input, in place of mean and variance."""
    _, updated = model.apply(
        {"params": params, "batch_stats": zeros}, batch["image"], train=True, batch=batch,
        mutable=["batch_stats"],
    )  # fmt: skip
    # From running values of zero the update leaves (1 - momentum) times those of the batch.
    batch = jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), updated["batch_stats"])
    return _map_layers(lambda mean, var: (mean, var + mean**2), batch)


def _statistics(moments: Any) -> Any:
    return _map_layers(lambda mean, second: (mean, jnp.maximum(second - mean**2, 0)), moments)


def _map_layers(function: Any, tree: Any) -> Any:
    """Applies function(mean, var) -> (mean, var) to each {"mean", "var"} of a tree."""
    if set(tree) == {"mean", "var"}:
        return dict(zip(("mean", "var"), function(tree["mean"], tree["var"]), strict=True))
    return {name: _map_layers(function, part) for name, part in tree.items()}
