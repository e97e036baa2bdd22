"""Checkpoints of a run (orbax): saved in the background, whole or not at all, restored bit for bit.

A checkpoint holds the train state, the vocabulary of its codes and classes, the settings and the
fingerprint of the data that it was trained with, what the log knows of the last steps, and
checksums. The data position is the step of the state: a run resumes from that alone. Arrays are
numbers and the rest is JSON: reading runs no code.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from rxrx1_jax.config import described
from rxrx1_jax.data.files import parse_json
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.training import orbax_mends
from rxrx1_jax.training.checksums import checks
from rxrx1_jax.training.steps import TrainState

WHICH = ("last", "best")
# What to read for another training, and for anything else: parts of the state.
EVALUATED = ("step", "params", "batch_stats", "ema_params", "ema_batch_stats")
# The settings that a part of the state follows from.
SETTINGS = {"opt_state": "optim.name", "loss_state": "optim.loss", "ema": "optim.ema_decay"}

UNREADABLE = (
    "{path}: cannot be read ({reason}); if it is a copy, copy it again; else move this folder"
    " elsewhere, and the run resumes from the checkpoint before it"
)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; one line saying what to do."""


class Origin(NamedTuple):
    """What a checkpoint was trained with."""

    vocabulary: Vocabulary
    fingerprint: Mapping[str, str]  # of data and split: `fingerprints.describe_data`
    settings: Mapping[str, Any]  # {field: value}
    total_steps: int


class Saved(NamedTuple):
    """A checkpoint without its arrays."""

    path: Path
    vocabulary: Vocabulary | None  # None: of version 0.2, which kept the classes alone
    classes: np.ndarray  # int32 [K]
    fingerprint: Mapping[str, str]
    settings: Mapping[str, Any]  # empty of version 0.3.0
    total_steps: int  # 0 of version 0.3.0
    recent: list[dict[str, float]]
    checksums: Mapping[str, int]


@contextlib.contextmanager
def manager(workdir: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Writes the checkpoints of the run in `workdir`; keeps the last `keep`, and the best one.

    What a kill left half-written is removed: for the training alone, under its lock.
    """
    orbax_mends.apply()
    find(workdir, "best")  # orbax reads the scores; one that is damaged is a line here
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
    # take for those of `processes.Notice`: then a notice could go unheard.
    checkpoints.reached_preemption = lambda step: False
    try:
        yield checkpoints
    except BaseException:
        with contextlib.suppress(Exception):  # of a write that failed: it is told already
            checkpoints.close()
        raise
    _written(checkpoints, checkpoints.close)


def save(
    checkpoints: ocp.CheckpointManager, state: TrainState, origin: Origin,
    recent: Sequence[dict[str, float]] = (), score: float | None = None,
) -> None:  # fmt: skip
    """Starts saving; the arrays are copied before it returns, so the step may donate them.

    recent: `progress.Log.recent`. score: how good it is, higher is better; None: not known, so that
    it cannot be the best. Nothing is done where the step is saved already.

    Raises:
      FloatingPointError: the state holds values that are not finite; nothing is written.
      CheckpointError: this or the save before it failed, for example on a full disk.
    """
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    checked = jax.device_get(checks(state))
    bad = [name for name, (finite, _) in checked.items() if not finite]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} have values that are not finite, so it is not saved"
        )
    about = {
        **origin._asdict(), "vocabulary": origin.vocabulary.to_json(),
        "recent": list(recent), "checksums": {name: int(x) for name, (_, x) in checked.items()},
    }  # fmt: skip
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
    )
    metrics = None if score is None else {"score": float(score)}
    _written(checkpoints, partial(checkpoints.save, step, args=args, metrics=metrics, force=True))


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Returns when everything is on the disk. Raises CheckpointError where that failed."""
    _written(checkpoints, checkpoints.wait_until_finished)


def find(workdir: str | Path, which: str = "last") -> Path | None:
    """The folder of a checkpoint of the run; None where there is no such one. Changes nothing.

    which: "last"; "best", the one of the highest accuracy on the split's set `val`, else of the
    lowest training loss over the last train.log_every steps. The test set has no say.
    """
    if which not in WHICH:
        raise CheckpointError(f"which={which!r}: expected one of {', '.join(WHICH)}")
    folder = Path(workdir).absolute() / "checkpoints"
    steps = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal()}
    if which == "best":
        scored = [
            (_json(path, "metrics/metrics", lambda found: float(_score(found))), step)
            for step, path in steps.items()
            if (path / "metrics").exists()
        ]
        return steps[max(scored)[1]] if scored else None
    return steps[max(steps)] if steps else None


def describe(path: Path) -> Saved:
    """What the checkpoint says of itself. Raises CheckpointError."""
    old = (path / "classes").exists()  # of version 0.2
    classes: Any = _json(path, "classes/metadata", np.int32) if old else None

    def saved(about: Any) -> Saved:
        vocabulary = None if old else Vocabulary.from_json(about["vocabulary"])
        about = {"fingerprint": {}, "settings": {}, "total_steps": 0, **about}
        parts = (about[name] for name in Saved._fields[3:])
        return Saved(path, vocabulary, getattr(vocabulary, "classes", classes), *parts)

    return _json(path, f"{'log' if old else 'about'}/metadata", saved)


def restore(
    saved: Saved, abstract: TrainState | jax.sharding.Sharding, resume: bool
) -> TrainState:
    """The state on the devices of `abstract`; bit for bit as it was saved.

    Args:
      abstract: of jax.ShapeDtypeStruct with a sharding; or a sharding, for the shapes of the
        checkpoint: an evaluation knows no others.
      resume: with all that a training needs; else `opt_state` and `loss_state` are () and not read.

    Raises:
      CheckpointError: the state has another form, by name; it is damaged, or cannot be read.
    """
    path = saved.path
    tree = _read(path, lambda reader: reader.metadata(path).item_metadata["state"].tree)
    if isinstance(abstract, jax.sharding.Sharding):
        place = partial(jax.ShapeDtypeStruct, sharding=abstract)
        parts = {name: tree.get(name) for name in EVALUATED}
        parts = jax.tree.map(lambda leaf: place(leaf.shape, leaf.dtype), parts)
        abstract = TrainState(**parts, opt_state=())
    names = tuple(abstract.__dataclass_fields__) if resume else EVALUATED
    wanted = {name: getattr(abstract, name) for name in names}
    wanted = {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)}
    _compare(path, {name: tree.get(name) for name in names}, wanted)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
    )  # fmt: skip
    found = _read(path, lambda reader: reader.restore(path, args))["state"]
    sums = {name: int(x) for name, (_, x) in jax.device_get(checks(found)).items()}
    bad = [name for name in sums if sums[name] != saved.checksums.get(name)]
    if bad:
        raise CheckpointError(
            f"{path}: damaged, the checksum of {', '.join(bad)} is another one; move this folder"
            " elsewhere, and the run resumes from the checkpoint before it"
        )
    rest = {} if resume else {"opt_state": (), "loss_state": ()}
    return abstract.replace(**rest, **found)


def _json(path: Path, name: str, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of the content of a JSON file."""
    try:
        return read(parse_json((path / name).read_bytes()))
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = f"{name}: {described(error)}"
        raise CheckpointError(UNREADABLE.format(path=path, reason=reason)) from error


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _read(path: Path, read: Callable[[ocp.Checkpointer], Any]) -> Any:
    text = ocp.JsonCheckpointHandler
    handlers = {name: text() for name in ("about", "classes", "log")}
    handlers |= {"state": ocp.PyTreeCheckpointHandler(), "metrics": text(filename="metrics")}
    orbax_mends.apply()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
            return read(reader)
    except Exception as error:  # orbax and TensorStore let through whatever their parsers raise
        reason = " ".join(str(error).split()).partition(" See full")[0][:200]
        raise CheckpointError(UNREADABLE.format(path=path, reason=reason)) from error


def _compare(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the first array in which they differ and its settings."""
    one, two = (
        {
            jax.tree_util.keystr(place, simple=True, separator="/"): tuple(leaf.shape)
            for place, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (saved, wanted)
    )
    # What differs in the network differs in its averages and in the optimizer, too.
    for name in sorted([*two, *one], key=lambda name: not name.startswith("params/")):
        there, here = (f"{x[name]}" if name in x else "missing" for x in (one, two))
        if there != here:
            part = name.partition("/")[0].partition("_params")[0].partition("_batch_stats")[0]
            setting = SETTINGS.get(part, "model.name, model.width, model.head, channels of images")
            raise CheckpointError(
                f"{path}: {name} is {there} in the checkpoint and {here} by the settings; the"
                f" checkpoint is not at fault: check {setting}"
            )


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
            " the same command resumes from it"
        ) from error
