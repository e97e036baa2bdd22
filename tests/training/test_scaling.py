"""1, 2, 4 and 8 devices give the same numbers, each with its share of the work."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_info import make_info
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.given import OnDevices
from configs import demo
from rxrx1_jax.training import optimizers, parallel, steps

SIDE, CLASSES, ROWS, UPDATES = 32, 5, 16, 3
# Relative to the largest number of each array. Sums over rows are taken in another order with each
# number of devices, each rounding by 6e-8, and three updates carry the difference on.
TOLERANCE = 2e-5


class Small(nn.Module):
    """What the networks are made of, in a program that compiles in a second."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, batch, info):
        x = nn.Conv(8, (3, 3), 2, use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(not info.train, momentum=0.9, axis_name=self.axis_name)(x))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def make_spec(model, config):
    optimizer = optimizers.create_optimizer(config.optim, 100)
    return steps.StepSpec(model, *optimizer, make_info(CLASSES).vocabulary, 100)


def train_on(devices: int, parallelism: str, monkeypatch) -> tuple[list[float], steps.TrainState]:
    """Losses of a few updates of a small network, and the state after them, as NumPy."""
    used = jax.devices()[:devices]
    mesh = partial(jax.make_mesh, devices=used)
    monkeypatch.setattr(steps.jax, "make_mesh", mesh)
    for count in ("device_count", "local_device_count"):
        monkeypatch.setattr(steps.jax, count, lambda: devices)
    monkeypatch.setattr(steps.jax, "pmap", partial(jax.pmap, devices=used))
    config = demo.get_config()
    config.optim.learning_rate = 0.05
    axis = parallel.AXIS if parallelism == "pmap" else None
    spec = make_spec(Small(axis), config)
    wrapped = OnDevices(parallelism, spec)
    assert wrapped.devices.by_row.num_devices == devices
    state = wrapped.put(steps.create_state(spec, jax.random.key(0), (SIDE, SIDE, 6)))
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(UPDATES):
        batch = {
            "image": rng.standard_normal((ROWS, SIDE, SIDE, 6), np.float32),
            "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
            "mask": np.ones(ROWS, bool),
        }
        shards = wrapped.draw(batch).planes["image"].addressable_shards
        assert [shard.data.shape[1] for shard in shards] == [ROWS // devices] * devices
        state, step_metrics = wrapped.train_step(state, batch)
        losses.append(float(step_metrics[0]))
    monkeypatch.undo()
    return losses, jax.device_get(state)


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return train_on(1, "jit", monkeypatch)


@pytest.mark.devices
@pytest.mark.parametrize(
    ("devices", "parallelism"),
    [(2, "jit"), (4, "jit"), (8, "jit"), (1, "pmap"), (2, "pmap"), (4, "pmap"), (8, "pmap")],
)
def test_the_numbers_do_not_depend_on_the_devices(alone, devices, parallelism, monkeypatch):
    losses, state = train_on(devices, parallelism, monkeypatch)
    np.testing.assert_allclose(losses, alone[0], rtol=TOLERANCE)
    leaves, expected = jax.tree.leaves(state), jax.tree.leaves(alone[1])
    assert len(leaves) == len(expected) > 8
    for leaf, one in zip(leaves, expected, strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(leaf, one, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.devices
def test_the_work_of_a_device_is_its_share_of_the_batch():
    """XLA's own count of the floating-point operations of one device's program."""
    config = demo.get_config()
    model = Small()
    spec = make_spec(model, config)
    train = partial(steps.train_step, spec)
    state = steps.create_state(spec, jax.random.key(0), (SIDE, SIDE, 6))
    flops = {}
    for devices in (1, 8):
        mesh = jax.make_mesh(
            (devices,), (parallel.AXIS,), axis_types=(AxisType.Auto,),
            devices=jax.devices()[:devices],
        )
        by_row = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
        copied = NamedSharding(mesh, PartitionSpec())
        shapes = {
            "image": ((ROWS, SIDE, SIDE, 6), jnp.float32),
            "label": ((ROWS,), jnp.int32),
            "mask": ((ROWS,), bool),
        }
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)
            for name, (shape, dtype) in shapes.items()
        }
        put = jax.device_put(state, copied)
        program = jax.jit(train, out_shardings=copied).lower(put, batch).compile()
        flops[devices] = program.cost_analysis()["flops"]
    # Every device updates all parameters: a few operations each, which are not divided.
    update = 20 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert flops[1] / 8 <= flops[8] <= flops[1] / 8 + update
