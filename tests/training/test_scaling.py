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


def make_spec(model, config, **options):
    optimizer = optimizers.create_optimizer(config.optim, 100)
    return steps.StepSpec(model, *optimizer, make_info(CLASSES).vocabulary, 100, **options)


def train_on(devices: int, parallelism: str, monkeypatch, parts: int = 1):
    """Metrics of a few updates of a small network in `parts` micro-batches, the state after them
    and what it says of the last batch, as NumPy."""
    used = jax.devices()[:devices]
    mesh = partial(jax.make_mesh, devices=used)
    monkeypatch.setattr(steps.jax, "make_mesh", mesh)
    for count in ("device_count", "local_device_count"):
        monkeypatch.setattr(steps.jax, count, lambda: devices)
    monkeypatch.setattr(steps.jax, "pmap", partial(jax.pmap, devices=used))
    config = demo.get_config()
    config.optim.learning_rate = 0.05
    axis = parallel.AXIS if parallelism == "pmap" else None
    options = dict(ema_decay=0.9, label_smoothing=0.1, accumulation=parts)
    spec = make_spec(Small(axis), config, **options)
    wrapped = OnDevices(parallelism, spec)
    assert wrapped.devices.by_row.num_devices == devices
    state = wrapped.put(steps.create_state(spec, jax.random.key(0), (SIDE, SIDE, 6)))
    rng = np.random.default_rng(0)
    logged = []
    for _ in range(UPDATES):
        batch = {
            "image": rng.standard_normal((ROWS, SIDE, SIDE, 6), np.float32),
            "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
            "mask": np.arange(ROWS) != 5,
        }
        shards = wrapped.draw(batch).planes["image"].addressable_shards
        assert [shard.data.shape[1] for shard in shards] == [ROWS // devices] * devices
        state, step_metrics = wrapped.train_step(state, batch)
        logged.append(jax.device_get(step_metrics))
    scores = jax.tree.map(parallel.local_rows, wrapped.eval_step(state, batch))
    monkeypatch.undo()
    return jax.device_get((logged, state, scores))


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return {parts: train_on(1, "jit", monkeypatch, parts) for parts in (1, 2)}


@pytest.mark.devices
@pytest.mark.parametrize(
    ("devices", "parallelism", "parts"),
    [(2, "jit", 1), (4, "jit", 1), (8, "jit", 1), (1, "pmap", 1), (2, "pmap", 1), (4, "pmap", 1),
     (8, "pmap", 1), (8, "jit", 2)],
)  # fmt: skip
def test_the_numbers_do_not_depend_on_the_devices(
    alone, devices, parallelism, parts, monkeypatch
):
    leaves, expected = map(
        jax.tree.leaves, (train_on(devices, parallelism, monkeypatch, parts), alone[parts])
    )
    assert len(leaves) == len(expected) > 20
    for leaf, one in zip(leaves, expected, strict=True):
        scale = np.abs(one).max() + 1e-3
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
