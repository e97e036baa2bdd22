"""The network of a run as one program (StableHLO) that needs JAX alone to run.

    log_probs [n, K], embedding [n, d] = program.call(planes, mean, std, cell_type)

It does what an evaluation does: crop, normalisation, network, and the averaged weights where there
are some. The weights are constants of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from rxrx1_jax.data.normalisation import STD_FLOOR
from rxrx1_jax.data.stream import Draw, Store
from rxrx1_jax.training import steps
from rxrx1_jax.training.setup import Setup
from rxrx1_jax.training.steps import TrainState

PLATFORMS = ("cpu", "cuda", "tpu")
# What it is called with, in order; rows are images, any number of them.
ARGUMENTS = {
    "planes": "uint8 [n, {}, {}, {}]: images, in counts",
    "mean": "float32 [n, {}]: of each channel of what normalises an image, in counts",
    "std": "float32 [n, {}]: its standard deviation",
    "cell_type": "int32 [n]: position in `cell_types` of vocabulary.json, which heads of a cell"
    " type read; any number for other heads",
}
OUTPUTS = ("log_probs", "embedding")


def make(setup: Setup, state: TrainState) -> export.Exported:
    """The program, for all PLATFORMS. setup: for an evaluation."""
    channels, height, width = setup.images.image_shape
    rows = export.symbolic_shape("n")
    shapes: list[tuple[Any, Any]] = [((*rows, channels, height, width), jnp.uint8)]
    shapes += [((*rows, channels), jnp.float32)] * 2 + [(rows, jnp.int32)]
    predict = jax.jit(_predictor(setup, jax.device_get(state)))
    given = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
    return export.export(predict, platforms=PLATFORMS)(*given)


def _predictor(setup: Setup, state: TrainState) -> Callable[..., tuple[jax.Array, ...]]:
    columns = setup.stream.shapes(1, 1)[0].columns  # no mean and std where pixels give their own

    def predict(
        planes: jax.Array, mean: jax.Array, std: jax.Array, cell_type: jax.Array
    ) -> tuple[jax.Array, ...]:
        row, zero = jnp.arange(planes.shape[0], dtype=jnp.int32), jnp.zeros_like(cell_type)
        given = {"mean": mean, "std": jnp.maximum(std, STD_FLOOR), "cell_type": cell_type}
        given["experiment"] = zero - 1  # of none that training knew
        store = Store({name: given.get(name, zero) for name in columns}, None)
        draw = Draw(jnp.stack([row, zero, zero + 1], -1)[None], planes[None], jnp.int32(1))
        batch = setup.stream.batch(store, draw, 0, train=False)
        found = steps.embed_step(setup.spec, state, batch)
        return tuple(found[name] for name in OUTPUTS)

    return predict
