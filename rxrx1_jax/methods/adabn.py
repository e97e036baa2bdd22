"""AdaBN: BatchNorm statistics of a trained network, estimated again on images of one batch.

Li, Wang, Shi, Liu and Hou 2016, "Revisiting batch normalization for practical domain adaptation"
(arXiv:1603.04779). No label and no weight is touched: of each BatchNorm layer the running mean and
variance are replaced by those of the given images, as they come through the adapted layers below.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rxrx1_jax.model.resnet import BATCH_NORM_MOMENTUM
from rxrx1_jax.training import steps


def adapted_statistics(
    spec: steps.StepSpec, params: Any, batch_stats: Any, batches: Iterable[steps.Batch]
) -> Any:
    """Running statistics from the images of `batches`, which are of equal size and not padded.

    Args:
      spec: of the network, without an axis over which BatchNorm averages.
      params, batch_stats: of the network; of `batch_stats` the structure alone is used.
      batches: dicts with image [N, H, W, C] and what the network's head reads.

    Returns:
      A tree like `batch_stats`: mean of the batches' means m, and by the law of total variance
      mean(v + m^2) - mean(m)^2. In the first layer these are the moments of all images exactly;
      above it each batch was normalised by its own statistics, so larger batches are closer.

    Raises:
      ValueError: no batch, or a network without BatchNorm.
    """
    if not batch_stats:
        raise ValueError("AdaBN needs a network with BatchNorm; model.name names one without")
    count, total = 0, None
    zeros = jax.tree.map(jnp.zeros_like, batch_stats)
    for batch in batches:
        moments = _moments(spec, params, zeros, dict(batch))
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        count += 1
    if total is None:
        raise ValueError("no images to estimate BatchNorm statistics from")
    return _statistics(jax.tree.map(lambda x: x / count, total))


@partial(jax.jit, static_argnums=0)
def _moments(spec: steps.StepSpec, params: Any, zeros: Any, batch: dict[str, jax.Array]) -> Any:
    """First and second moments of every layer's input, in place of mean and variance."""
    updated = steps.batch_statistics(spec, params, zeros, batch)
    # From running values of zero the update leaves (1 - momentum) times those of the batch.
    batch = jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), updated)
    return _map_layers(lambda mean, var: (mean, var + mean**2), batch)


def _statistics(moments: Any) -> Any:
    return _map_layers(lambda mean, second: (mean, jnp.maximum(second - mean**2, 0)), moments)


def _map_layers(function: Any, tree: Any) -> Any:
    """Applies function(mean, var) -> (mean, var) to each {"mean", "var"} of a tree."""
    if set(tree) == {"mean", "var"}:
        return dict(zip(("mean", "var"), function(tree["mean"], tree["var"]), strict=True))
    return {name: _map_layers(function, part) for name, part in tree.items()}
