"""Checkpoints of a run (orbax): saved in the background, whole or not at all, restored bit for bit.

A checkpoint holds the train state and the classes of its outputs. The data position is the state's
step, so nothing else is needed to go on exactly where a run stopped.
"""

from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

State = TypeVar("State")


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit; one line saying what to do."""


def manager(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of the run in `workdir`; the last `keep` are kept."""
    return ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any, classes: np.ndarray) -> None:
    """Starts saving; the arrays are copied before it returns, so the step may donate them."""
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            classes=ocp.args.JsonSave([int(sirna_id) for sirna_id in classes]),
        ),
    )


def restore(checkpoints: ocp.CheckpointManager, state: State, classes: np.ndarray) -> State:
    """The newest checkpoint in the layout and sharding of `state`, or `state` when there is none.

    Raises CheckpointError when it was trained on other classes than `classes` (sirna_ids).
    """
    step = checkpoints.latest_step()
    if step is None:
        return state
    path = f"{checkpoints.directory}/{step}"
    saved = checkpoints.restore(step, args=ocp.args.Composite(classes=ocp.args.JsonRestore()))
    if saved["classes"] != [int(sirna_id) for sirna_id in classes]:
        raise CheckpointError(
            f"{path}: trained on {len(saved['classes'])} siRNA classes, the dataset has "
            f"{len(classes)} (or other siRNAs); choose the run's dataset or another --workdir"
        )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    restored = checkpoints.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    )
    return restored["state"]


def load_params(workdir: str | Path) -> tuple[dict[str, Any], np.ndarray]:
    """The trained network of a run, for other projects and any number of devices.

    Returns:
      ({"params": ..., "batch_stats": ...} of NumPy arrays for `model.apply`, with the averaged
      weights where the run kept an average; classes [K] int32, the sirna_id of each output).

    Raises:
      CheckpointError when `workdir` has no checkpoint.
    """
    folder = Path(workdir) / "checkpoints"
    steps = ocp.utils.checkpoint_steps(folder.absolute()) if folder.exists() else []
    if not steps:
        raise CheckpointError(f"{workdir}: no checkpoint found; train with this --workdir first")
    step = folder.absolute() / str(max(steps))
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(step / "state").item_metadata.tree
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
        state = checkpointer.restore(step / "state", target)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        classes = checkpointer.restore(step / "classes")
    prefix = "" if state.get("ema_params") is None else "ema_"
    variables = {name: state[prefix + name] for name in ("params", "batch_stats")}
    return variables, np.asarray(classes, np.int32)
