"""Checkpoints of a run (orbax): saved in the background, whole or not at all, restored bit for bit.

A checkpoint holds the train state, the classes of its outputs, what the log knows of the last steps
and a checksum. The data position is the state's step, so nothing else is needed to go on exactly
where a run stopped. Arrays are numbers and the rest is JSON: reading one runs no code from it.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

State = TypeVar("State")

WHICH = ("last", "best")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; one line saying what to do."""


def manager(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of the run in `workdir`; the last `keep` are kept, and the best one."""
    best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    checkpoints = ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
        ),
    )
    # Orbax asks JAX too whether the run was told to end, with numbers of its own, which JAX would
    # take for those of `preemption.Notice`: then a notice could go unheard.
    checkpoints.reached_preemption = lambda step: False
    return checkpoints


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: Any, classes: np.ndarray,
    recent: Sequence[dict[str, float]] = (), score: float | None = None,
) -> None:  # fmt: skip
    """Starts saving; the arrays are copied before it returns, so the step may donate them.

    recent: `metrics.Log.recent`. score: how good it is, higher is better; None: not known, so that
    it cannot be the best. Nothing is done where the step is saved already.

    Raises:
      FloatingPointError: the state holds values that are not finite; nothing is written.
      CheckpointError: this or the save before it failed, for example on a full disk.
    """
    if step in checkpoints.all_steps():
        return
    checks = jax.device_get(_checks(state))
    bad = [name for name, (finite, _) in checks.items() if not finite]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} have values that are not finite, so it is not saved"
        )
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        classes=ocp.args.JsonSave([int(sirna_id) for sirna_id in classes]),
        log=ocp.args.JsonSave(
            {"recent": list(recent), "checksums": {name: int(x) for name, (_, x) in checks.items()}}
        ),
    )
    metrics = None if score is None else {"score": float(score)}
    _written(checkpoints, partial(checkpoints.save, step, args=args, metrics=metrics, force=True))


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Returns when everything is on the disk. Raises CheckpointError where that failed."""
    _written(checkpoints, checkpoints.wait_until_finished)


def restore(
    checkpoints: ocp.CheckpointManager, state: State, classes: np.ndarray
) -> tuple[State, list[dict[str, float]]]:
    """The newest checkpoint in the layout and sharding of `state`, and its `recent`.

    `state` itself and nothing recent where there is no checkpoint.

    Raises CheckpointError: trained on other classes than `classes` (sirna_ids), of another model,
    or damaged.
    """
    step = checkpoints.latest_step()
    if step is None:
        return state, []
    path = checkpoints.directory / str(step)
    json = ocp.args.JsonRestore()
    saved = _read(path, checkpoints.restore, step, args=ocp.args.Composite(classes=json, log=json))
    if saved["classes"] != [int(sirna_id) for sirna_id in classes]:
        raise CheckpointError(
            f"{path}: trained on {len(saved['classes'])} siRNA classes, the dataset has "
            f"{len(classes)} (or other siRNAs); choose the run's dataset or another --workdir"
        )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    restored = _read(path, checkpoints.restore, step, args=args)["state"]
    _check(path, restored, saved["log"]["checksums"])
    return restored, saved["log"]["recent"]


def load_params(workdir: str | Path, which: str = "last") -> tuple[dict[str, Any], np.ndarray]:
    """The trained network of a run, for other projects and any number of devices.

    which: "last", the one that the run's own evaluation is of; "best", the one of the highest
    accuracy on the split's set `val` (protocol wilds), else of the lowest training loss over the
    last train.log_every steps. The test set has no say.

    Returns:
      ({"params": ..., "batch_stats": ...} of NumPy arrays for `model.apply`, with the averaged
      weights where the run kept an average; classes [K] int32, the sirna_id of each output).

    Raises:
      CheckpointError when `workdir` has no (such) checkpoint, or it is damaged.
    """
    if which not in WHICH:
        raise CheckpointError(f"which={which!r}: expected one of {', '.join(WHICH)}")
    folder = Path(workdir).absolute() / "checkpoints"
    step = None
    if folder.exists():
        options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_score)
        with ocp.CheckpointManager(folder, options=options) as checkpoints:
            step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
    if step is None:
        raise CheckpointError(
            f"{workdir}: no checkpoint found to take the {which} one of; train with this --workdir"
            " first"
        )
    path = folder / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = _read(path, lambda: checkpointer.metadata(path / "state").item_metadata.tree)
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
        state = _read(path, checkpointer.restore, path / "state", target)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        classes, log = (
            _read(path, checkpointer.restore, path / name) for name in ("classes", "log")
        )
    prefix = "" if state.get("ema_params") is None else "ema_"
    saved = {prefix + name: state[prefix + name] for name in ("params", "batch_stats")}
    _check(path, saved, log["checksums"])
    variables = {name.removeprefix(prefix): tree for name, tree in saved.items()}
    return variables, np.asarray(classes, np.int32)


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _read(path: Path, read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return read(*args, **kwargs)
    except Exception as error:  # orbax and TensorStore let through whatever their parsers raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: of another model, of an older version of this program, or damaged ({reason});"
            " remove this folder to go on from the checkpoint before it, or choose another"
            " --workdir"
        ) from error


def _written(checkpoints: ocp.CheckpointManager, write: Callable[[], Any]) -> None:
    try:
        write()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        free = shutil.disk_usage(checkpoints.directory).free / 2**20
        good = [int(path.name) for path in checkpoints.directory.iterdir() if path.name.isdecimal()]
        raise CheckpointError(
            f"{checkpoints.directory}: a checkpoint could not be written ({free:.1f} MB free there;"
            f" {reason}); the last good one is of step {max(good, default='none')}: make space, and"
            " the same command goes on from it"
        ) from error


def _check(path: Path, state: Any, checksums: dict[str, int]) -> None:
    """TensorStore does not notice every bit that changed on the disk."""
    found = {name: int(x) for name, (_, x) in jax.device_get(_checks(state)).items()}
    bad = [name for name in found if found[name] != checksums.get(name)]
    if bad:
        raise CheckpointError(
            f"{path}: damaged, the checksum of {', '.join(bad)} is another one; remove this folder"
            " to go on from the checkpoint before it"
        )


@jax.jit
def _checks(state: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """For each part of the state: are all values finite, and the sum of all bits, weighted by odd
    numbers so that neither a changed bit nor exchanged values go unnoticed."""

    def bits(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return x.astype(jnp.uint32)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

    def checksum(x: jax.Array) -> jax.Array:
        weights = 2 * jax.lax.iota(jnp.uint32, x.size) + 1
        return jnp.sum(bits(x).reshape(-1) * weights, dtype=jnp.uint32)

    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path[:1], simple=True)
        parts.setdefault(name, []).append(jnp.asarray(leaf))
    return {
        name: (
            jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])),
            jnp.stack([jnp.uint32(2 * i + 1) * checksum(x) for i, x in enumerate(leaves)]).sum(
                dtype=jnp.uint32
            ),
        )
        for name, leaves in parts.items()
    }
