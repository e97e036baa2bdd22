"""The steps on all devices, of batches that are given rather than read."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rxrx1_jax.data.stream import Draw, Store
from rxrx1_jax.training import parallel, steps


class Given:
    """In place of a `Stream`: the draw holds the batch."""

    def batch(self, store, draw, i, train, progress=1.0):
        return {name: x[i] for name, x in draw.planes.items()}


class OnDevices:
    """`train_step(state, batch)` and `eval_step`, wrapped as in a run."""

    def __init__(self, parallelism, spec):
        self.devices = parallel.Devices(parallelism)
        self.train = self.devices.trainer(lambda numbers: spec, Given())
        self.evaluate = self.devices.evaluator(partial(steps.eval_step, spec), Given())

    def put(self, state):
        return jax.device_put(state, self.devices.copied)

    def draw(self, batch):
        rows = len(batch["label"])
        batch = {"site_index": jnp.arange(rows), **batch}
        by_row = NamedSharding(self.devices.mesh, PartitionSpec(None, parallel.AXIS))
        chosen = jnp.zeros((1, rows, 3), jnp.int32)
        parts = {name: jnp.asarray(x)[None] for name, x in batch.items()}
        draw = Draw(*jax.device_put((chosen, parts), by_row), count=jnp.int32(1))
        return draw._replace(count=self.put(draw.count))

    def train_step(self, state, batch):
        state, metrics = self.train(state, Store({}, None), self.draw(batch))
        return state, metrics[0]

    def eval_step(self, state, batch):
        found = dict(self.evaluate(state, Store({}, None), self.draw(batch)))
        del found["site_index"], found["mask"]
        return found
