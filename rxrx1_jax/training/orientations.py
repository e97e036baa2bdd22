"""Test-time augmentation: the mean over the eight orientations of the square, of each image.

Log-probabilities are averaged, as those of the sites of a well are, and normalised again.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rxrx1_jax.training import steps

ORIENTATIONS = 8


def eval_step(
    spec: steps.StepSpec, state: steps.TrainState, batch: steps.Batch, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """As `steps.eval_step`, of the mean over the orientations."""
    return _mean(partial(steps.eval_step, spec, state), batch)


def embed_step(
    spec: steps.StepSpec, state: steps.TrainState, batch: steps.Batch, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """As `steps.embed_step`, of the means over the orientations."""
    return _mean(partial(steps.embed_step, spec, state), batch)


def _mean(step: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    found = [step({**batch, "image": turn(batch["image"], k)}) for k in range(ORIENTATIONS)]
    means = {
        name: sum((one[name] for one in found[1:]), found[0][name]) / ORIENTATIONS
        for name in found[0]
    }
    return means | steps.scores(means["log_probs"], batch)


@partial(jax.jit, static_argnums=1)
def turn(images: jax.Array, orientation: int) -> jax.Array:
    """[N, H, W, C]: quarter turns, and for orientations 4 to 7 the mirror image first."""
    images = images[:, :, ::-1] if orientation >= 4 else images
    return jnp.rot90(images, orientation % 4, axes=(1, 2))
