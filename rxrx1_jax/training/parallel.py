"""How devices share the steps of a run: two ways that give the same numbers.

- "jit": arrays are global, the batch is sharded over the devices and the compiler inserts the
  communication. BatchNorm statistics are those of the global batch.
- "pmap": each device runs the step on its slice and averages under the axis name `AXIS`. BatchNorm
  statistics are per device, unless the model was created with `bn_axis_name=AXIS`.

The state is the same, unstacked tree in both, and so are the checkpoints.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rxrx1_jax.data.stream import Batch, Draw, Store, Stream
from rxrx1_jax.model.resnet import on_cpu
from rxrx1_jax.training import compilation, faults, steps
from rxrx1_jax.training.run_dir import RunError
from rxrx1_jax.training.steps import StepSpec, TrainState

compilation.replace_damaged()

AXIS = "batch"  # the mapped axis under pmap
DETERMINISTIC = faults.DETERMINISTIC.partition("=")[0]

# Of XLA's compiler, for the training step: 630 in place of 741 MB of temporary memory for ResNet-50
# at 128 px, 16 rows, at the same speed.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

Outputs = Mapping[str, jax.Array]
SpecOf = Callable[[Mapping[str, jax.Array]], StepSpec]  # of numbers that are arguments; traced
StateStep = Callable[[TrainState, Batch], Outputs]  # of an evaluation; traced


def run_steps(
    given: SpecOf, stream: Stream, state: TrainState, store: Store, draw: Draw,
    axis_name: str | None = None,
) -> tuple[TrainState, jax.Array]:  # fmt: skip
    """Trains on the draw: the new state, and float32 [k, 4], the metrics of `steps.METRICS`.

    given: the spec, with the numbers of the store in it.
    Rows from draw.count on are 0.
    """
    spec = given(store.numbers)

    def one(i: jax.Array | int, state: TrainState) -> tuple[TrainState, jax.Array]:
        batch = stream.batch(store, draw, i, True, steps.progress(spec, state))
        return steps.train_step(spec, state, batch, axis_name)

    def further(i: jax.Array, done: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
        state, metrics = one(i, done[0])
        return state, done[1].at[i].set(metrics)

    if (k := draw.chosen.shape[0]) == 1:
        state, metrics = one(0, state)
        return state, metrics[None]
    nothing = jnp.zeros((k, len(steps.METRICS)), jnp.float32)
    return jax.lax.fori_loop(0, draw.count, further, (state, nothing))


def run_evaluation(
    step: StateStep, stream: Stream, state: TrainState, store: Store, draw: Draw
) -> Outputs:
    """What `step` gives for the rows of the draw, their site_index and their mask."""
    batch = stream.batch(store, draw, 0, False)
    return {**step(state, batch), "site_index": batch["site_index"], "mask": batch["mask"]}


@dataclass(frozen=True)
class Devices:
    """All devices, and how programs run on them.

    Raises RunError: pmap on a GPU that JAX was not started for.
    """

    parallelism: str = "jit"
    deterministic: bool = True  # the same bits in each run, on GPUs too

    def __post_init__(self) -> None:
        given = os.environ.get("XLA_FLAGS", "")
        if self.parallelism == "pmap" and self._options and DETERMINISTIC not in given:
            raise RunError(
                f"train.parallelism=pmap is not deterministic on a GPU without {DETERMINISTIC}=true"
                " in XLA_FLAGS: set it before JAX starts, or choose jit, or"
                " train.deterministic=False"
            )

    @property
    def _options(self) -> dict[str, Any]:
        """Of XLA's compiler, for every program of `jax.jit`; `jax.pmap` takes none."""
        on_gpu = jax.default_backend() == "gpu"
        return {DETERMINISTIC.strip("-"): True} if self.deterministic and on_gpu else {}

    @cached_property
    def mesh(self) -> Mesh:
        return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def by_row(self) -> NamedSharding:
        """Of every array of a batch: axis 0 over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def copied(self) -> NamedSharding:
        """Of every array of a state: a copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def trainer(
        self, given: SpecOf, stream: Stream
    ) -> Callable[[TrainState, Store, Draw], tuple[TrainState, jax.Array]]:
        """`run_steps` on all devices. The state handed to it is donated: use the returned one."""
        if self.parallelism == "jit":
            return jax.jit(
                partial(run_steps, given, stream), donate_argnums=0, out_shardings=self.copied,
                compiler_options=COMPILER_OPTIONS if on_cpu() else self._options or None,
            )  # fmt: skip
        mapped = jax.pmap(
            partial(run_steps, given, stream, axis_name=AXIS), AXIS,
            in_axes=(None, None, Draw(0, 0, None)), out_axes=None, donate_argnums=0,
        )  # fmt: skip
        return lambda *arguments: self._global(self._on_each(mapped, *arguments), self.copied)

    def evaluator(
        self, step: StateStep, stream: Stream
    ) -> Callable[[TrainState, Store, Draw], Outputs]:
        """`run_evaluation` on all devices; rows are those of the draw, see `local_rows`."""
        run = partial(run_evaluation, step, stream)
        if self.parallelism == "jit":
            options = self._options or None
            return jax.jit(run, out_shardings=self.by_row, compiler_options=options)
        mapped = jax.pmap(run, AXIS, in_axes=(None, None, Draw(0, 0, None)))
        unstack = jax.jit(
            partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:])),
            out_shardings=NamedSharding(self.mesh.local_mesh, PartitionSpec(AXIS)),
        )
        return lambda *arguments: self._global(
            unstack(self._on_each(mapped, *arguments)), self.by_row
        )

    # pmap works on the arrays of one process, with a leading axis of its devices:
    # global [k, N, ...] <-> [k, n, ...] of this process -> [devices, k, n / devices, ...].

    def _on_each(self, mapped: Any, state: TrainState, store: Store, draw: Draw) -> Any:
        rows = PartitionSpec(None, AXIS)
        parts = self._stack(self._local(draw._replace(count=None), rows))
        draw = parts._replace(count=self._local(draw.count, PartitionSpec()))
        return mapped(*self._local((state, store), PartitionSpec()), draw)

    @cached_property
    def _stack(self) -> Callable[[Any], Any]:
        devices = self.mesh.local_mesh.size

        def stack(x: jax.Array) -> jax.Array:
            k, n = x.shape[:2]
            return jnp.swapaxes(x.reshape(k, devices, n // devices, *x.shape[2:]), 0, 1)

        sharding = NamedSharding(self.mesh.local_mesh, PartitionSpec(AXIS))
        return jax.jit(partial(jax.tree.map, stack), out_shardings=sharding)

    def _local(self, tree: Any, spec: PartitionSpec) -> Any:
        if jax.process_count() == 1:
            return tree
        return multihost_utils.global_array_to_host_local_array(tree, self.mesh, spec)

    def _global(self, tree: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            return tree
        return multihost_utils.host_local_array_to_global_array(tree, self.mesh, sharding.spec)


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array sharded over its first axis, in order: [N, ...] -> [n, ...]."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
