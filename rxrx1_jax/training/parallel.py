"""How devices share the steps of a run: two ways that give the same numbers.

- "jit": arrays are global, the batch is sharded over the devices and the compiler inserts the
  communication. BatchNorm statistics are those of the global batch.
- "pmap": each device runs the step on its slice and averages under the axis name `AXIS`. BatchNorm
  statistics are per device, unless the model was created with `bn_axis_name=AXIS`.

The state is the same, unstacked tree in both, and so are the checkpoints.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rxrx1_jax.model.resnet import on_cpu
from rxrx1_jax.training.steps import Batch, TrainState

AXIS = "batch"  # the mapped axis under pmap
PARALLELISMS = ("jit", "pmap")

# Of XLA's compiler, for the training step: 630 in place of 741 MB of temporary memory for ResNet-50
# at 128 px, 16 rows, at the same speed.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class ParallelSteps(NamedTuple):
    """The three steps ready for all devices, and where their arguments live."""

    train_step: Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]  # state is donated
    eval_step: Callable[[TrainState, Batch], dict[str, jax.Array]]
    embed_step: Callable[[TrainState, Batch], dict[str, jax.Array]]
    batch_sharding: NamedSharding  # of every array of a batch: axis 0 over all devices
    state_sharding: NamedSharding  # of every array of the state: a copy on every device


def parallelise(
    parallelism: str,
    train: Callable[..., tuple[TrainState, jax.Array]],
    evaluate: Callable[..., dict[str, jax.Array]],
    embed: Callable[..., dict[str, jax.Array]],
) -> ParallelSteps:
    """Wraps the three steps, all but (state, batch, axis_name) bound, for all devices.

    Batches are global arrays sharded by `batch_sharding`; the state is put on the devices by
    `jax.device_put(state, steps.state_sharding)`. The state handed to `train_step` is donated: use
    the returned one. Rows of eval_step's arrays are in the order of the batch; `local_rows` brings
    this host's to NumPy. Raises ValueError for an unknown parallelism.
    """
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    by_row, copied = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    if parallelism == "jit":
        options = COMPILER_OPTIONS if on_cpu() else None
        return ParallelSteps(
            jax.jit(train, donate_argnums=0, out_shardings=copied, compiler_options=options),
            jax.jit(evaluate, out_shardings=by_row),
            jax.jit(embed, out_shardings=by_row),
            by_row,
            copied,
        )
    if parallelism != "pmap":
        raise ValueError(
            f"train.parallelism is {parallelism!r}; choose one of {', '.join(PARALLELISMS)}"
        )

    # pmap works on the arrays of one process, with a leading axis of its devices:
    # global [N, ...] <-> [n, ...] of this process <-> [devices, n / devices, ...].
    devices, to_local, to_global = jax.device_count(), _as_it_is, _as_it_is
    if jax.process_count() > 1:
        devices = jax.local_device_count()
        to_local = partial(multihost_utils.global_array_to_host_local_array, global_mesh=mesh)
        to_global = partial(multihost_utils.host_local_array_to_global_array, global_mesh=mesh)
    local_by_row = NamedSharding(mesh.local_mesh, PartitionSpec(AXIS))
    stack = jax.jit(
        partial(jax.tree.map, lambda x: x.reshape(devices, -1, *x.shape[1:])),
        out_shardings=local_by_row,
    )
    unstack = jax.jit(
        partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:])), out_shardings=local_by_row
    )
    mapped_train = jax.pmap(
        partial(train, axis_name=AXIS), AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0
    )

    def on_all(mapped: Any, state: TrainState, batch: Batch) -> Any:
        local = to_local(batch, pspecs=by_row.spec)
        return mapped(to_local(state, pspecs=copied.spec), stack(local))

    def by_rows(step: Any) -> Any:
        mapped = jax.pmap(partial(step, axis_name=AXIS), AXIS, in_axes=(None, 0))
        return lambda state, batch: to_global(
            unstack(on_all(mapped, state, batch)), pspecs=by_row.spec
        )

    return ParallelSteps(
        lambda state, batch: to_global(on_all(mapped_train, state, batch), pspecs=copied.spec),
        by_rows(evaluate),
        by_rows(embed),
        by_row,
        copied,
    )


def _as_it_is(tree: Any, pspecs: PartitionSpec) -> Any:
    return tree


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array sharded over its first axis, in order: [N, ...] -> [n, ...]."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def compile_ahead(train_step: Callable[..., Any], state: TrainState, batch: Batch) -> None:
    """Compiles the step for these arguments, and on a CPU returns what compiling took.

    A compilation leaves hundreds of MB that glibc keeps; without this the first step takes its own
    temporary memory on top of them. Under pmap nothing is done.
    """
    if not isinstance(train_step, jax.stages.Wrapped):
        return
    train_step.lower(state, batch).compile()
    if on_cpu():
        return_free_memory()


def return_free_memory() -> None:
    """Gives the kernel back what is freed and lies in glibc's heap; elsewhere nothing is done."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
